-- Stand-in for a module that Debian lacks: the part the EWMA balancer uses,
-- which never waits (its timeout is 0).
local M = {}
M.__index = M

function M.new(_, dict_name, options)
  local dict = ngx.shared[dict_name]
  if not dict then
    return nil, "no such dictionary"
  end
  return setmetatable({ dict = dict, expires = options and options.exptime or 30 }, M)
end

function M:lock(key)
  if not self.dict:add(key, true, self.expires) then
    return nil, "timeout"
  end
  self.held = key
  return 0
end

function M:unlock()
  if not self.held then
    return nil, "unlocked"
  end
  self.dict:delete(self.held)
  self.held = nil
  return 1
end

return M
