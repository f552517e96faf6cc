local os = require("os")
if obj.spec == nil then
  obj.spec = {}
end
if obj.spec.delivery == nil then
  obj.spec.delivery = {}
end
if obj.spec.delivery.dlq == nil then
  obj.spec.delivery.dlq = {}
end
obj.spec.delivery.dlq.retryNonce = os.date("!%Y-%m-%dT%XZ")
return obj
