local actions = {}
local is_suspended = obj.spec ~= nil and obj.spec.suspend == true
actions["suspend"] = {["disabled"] = is_suspended}
actions["resume"] = {["disabled"] = not is_suspended}
actions["restart"] = {["disabled"] = is_suspended}
actions["retry-dead-letters"] = {["disabled"] = is_suspended}
return actions
