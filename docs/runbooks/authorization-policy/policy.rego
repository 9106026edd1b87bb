package spire

# Who may call what on the server, as `data.methods` says: a method's list of roles.

result := {
	"allow": "any" in roles,
	"allow_if_local": "local" in roles,
	"allow_if_admin": "admin" in roles,
	"allow_if_downstream": "downstream" in roles,
	"allow_if_agent": "agent" in roles,
}

# A method that is not listed is nobody's.
roles := object.get(data.methods, input.full_method, [])
