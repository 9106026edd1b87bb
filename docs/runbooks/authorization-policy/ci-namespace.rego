package spire

# As policy.rego, and below /ci the CI's admin, and nobody else, changes entries. `data.ci_admin` is its SPIFFE ID.

result := {
	"allow": "any" in roles,
	"allow_if_local": "local" in roles,
	"allow_if_admin": "admin" in roles,
	"allow_if_downstream": "downstream" in roles,
	"allow_if_agent": "agent" in roles,
}

entry := "/spire.api.server.entry.v1.Entry/"

creates := input.full_method == concat("", [entry, "BatchCreateEntry"])

# Updates and deletions name entries by their ID: whose they are the request does not say.
by_id := input.full_method in {concat("", [entry, "BatchUpdateEntry"]), concat("", [entry, "BatchDeleteEntry"])}

is_ci if input.caller == data.ci_admin

in_ci(path) if startswith(path, "/ci/")

all_in_ci if {
	every each in input.req.entries {
		in_ci(each.spiffe_id.path)
	}
}

some_in_ci if {
	some each in input.req.entries
	in_ci(each.spiffe_id.path)
}

default roles := []

# The CI's admin creates entries below /ci and no others, and may not make them powerful.
roles := ["any"] if {
	creates
	is_ci
	all_in_ci
	not powerful
}

roles := listed if {
	creates
	not is_ci
	not some_in_ci
}

# Operators at the server's own socket change any entry by its ID; admins over the network none.
roles := ["local"] if {
	by_id
}

roles := listed if {
	not creates
	not by_id
}

listed := object.get(data.methods, input.full_method, [])

powerful if {
	some each in input.req.entries
	each.admin
}

powerful if {
	some each in input.req.entries
	each.downstream
}
