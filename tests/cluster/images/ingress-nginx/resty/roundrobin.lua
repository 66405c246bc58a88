-- Stand-in for a module that Debian lacks. The controller gives every endpoint
-- the weight 1, so turns in a fixed order are all that is asked of it. Workers
-- begin at different places, as with the original.
local M = {}
M.__index = M

function M:reinit(nodes)
  local order = {}
  for id in pairs(nodes) do
    order[#order + 1] = id
  end
  table.sort(order)
  self.nodes = nodes
  self.order = order
  self.turn = #order > 0 and math.random(#order) or 0
end

function M.new(_, nodes)
  local self = setmetatable({}, M)
  self:reinit(nodes)
  return self
end

function M:find()
  local count = #self.order
  if count == 0 then
    return nil
  end
  self.turn = self.turn % count + 1
  return self.order[self.turn]
end

return M
