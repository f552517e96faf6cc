-- The health of every kind of litejoin.io, from the conditions of its status.
local hs = {}

local status = obj.status or {}
if status.observedGeneration == nil or status.observedGeneration ~= obj.metadata.generation then
  hs.status = "Progressing"
  hs.message = "Waiting for the operator to see the change"
  return hs
end

local conditions = {}
for _, condition in ipairs(status.conditions or {}) do
  conditions[condition.type] = condition
end

-- What does not mend by itself. It comes first: a wave of a sync must not wait for it.
local stalled = conditions["Stalled"]
if stalled ~= nil and stalled.status == "True" then
  hs.status = "Degraded"
  hs.message = stalled.message
  return hs
end

if obj.spec ~= nil and obj.spec.reconciliationPaused then
  hs.status = "Suspended"
  hs.message = "Paused by spec.reconciliationPaused"
  return hs
end

local ready = conditions["Ready"]
if ready == nil or ready.status ~= "True" then
  hs.status = "Progressing"
  hs.message = ready ~= nil and ready.message or "Waiting for the operator"
  return hs
end

hs.status = "Healthy"
local degraded = conditions["Degraded"]
if ready.reason == "Suspended" then
  hs.message = "Suspended by spec"
elseif degraded ~= nil and degraded.status == "True" then
  hs.message = degraded.message
else
  hs.message = ready.message
end
return hs
