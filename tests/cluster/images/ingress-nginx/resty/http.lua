-- Debian lacks this module. It serves only OCSP stapling, which is off by default.
return {
  new = function()
    return nil, "not available in this image"
  end,
}
