package spire

# As policy.rego, and local callers and admins only look. Whoever is named in `data.writers` changes things: SPIFFE IDs,
# or the paths of programs at the server's own socket.

result := {
	"allow": "any" in roles,
	"allow_if_local": may_operate("local"),
	"allow_if_admin": may_operate("admin"),
	"allow_if_downstream": "downstream" in roles,
	"allow_if_agent": "agent" in roles,
}

roles := object.get(data.methods, input.full_method, [])

name := split(input.full_method, "/")[2]

reads if {
	some start in ["Get", "List", "Count", "Check", "Watch", "Verify"]
	startswith(name, start)
}

writes if input.caller in data.writers

writes if input.caller_file_path in data.writers

default may_operate(_) := false

may_operate(role) if {
	role in roles
	reads
}

may_operate(role) if {
	role in roles
	writes
}
