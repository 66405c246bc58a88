-- Debian carries this module under another name (without SameSite).
return require("nginx.cookie")
