-- Debian lacks this module. It serves only the global rate limit, which needs memcached.
return {
  new = function()
    return nil, "not available in this image"
  end,
}
