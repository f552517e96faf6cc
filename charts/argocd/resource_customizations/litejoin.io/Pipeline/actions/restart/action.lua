local os = require("os")
if obj.spec == nil then
  obj.spec = {}
end
obj.spec.restartNonce = os.date("!%Y-%m-%dT%XZ")
return obj
