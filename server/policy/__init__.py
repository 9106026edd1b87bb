"""auth_opa_policy_engine: a Rego policy of the operator's decides who may call what, instead of the built-in table."""
