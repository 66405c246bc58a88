-- Debian carries this module under another name.
return require("nginx.dns.resolver")
