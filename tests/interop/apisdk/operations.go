package main

import (
	debugv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/debug/v1"
	localauthorityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
	loggerv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/logger/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
)

func (c *client) logger() {
	api := loggerv1.NewLoggerClient(c.admin)
	at, err := api.GetLogger(c.ctx, &loggerv1.GetLoggerRequest{})
	say("logger", err, at.GetCurrentLevel(), at.GetLaunchLevel())
	at, err = api.SetLogLevel(c.ctx, &loggerv1.SetLogLevelRequest{NewLevel: types.LogLevel_WARN})
	say("logger set", err, at.GetCurrentLevel(), at.GetLaunchLevel())
	_, err = api.SetLogLevel(c.ctx, &loggerv1.SetLogLevelRequest{})
	say("logger set nothing", err)
	at, err = api.ResetLogLevel(c.ctx, &loggerv1.ResetLogLevelRequest{})
	say("logger reset", err, at.GetCurrentLevel(), at.GetLaunchLevel())
	info, err := debugv1.NewDebugClient(c.admin).GetInfo(c.ctx, &debugv1.GetInfoRequest{})
	say("debug", err, info.GetAgentsCount(), info.GetEntriesCount(), info.GetFederatedBundlesCount(), len(info.GetSvidChain()))
}

// authorities prepares, activates, taints and revokes an authority of each kind.
func (c *client) authorities() {
	api := localauthorityv1.NewLocalAuthorityClient(c.admin)
	before, err := api.GetX509AuthorityState(c.ctx, &localauthorityv1.GetX509AuthorityStateRequest{})
	need("x509 state", err)
	_, err = api.TaintX509Authority(c.ctx, &localauthorityv1.TaintX509AuthorityRequest{AuthorityId: before.Active.AuthorityId})
	say("x509 taint active", err)
	prepared, err := api.PrepareX509Authority(c.ctx, &localauthorityv1.PrepareX509AuthorityRequest{})
	need("x509 prepare", err)
	_, err = api.ActivateX509Authority(c.ctx, &localauthorityv1.ActivateX509AuthorityRequest{AuthorityId: "0123"})
	say("x509 activate unknown", err)
	active, err := api.ActivateX509Authority(c.ctx, &localauthorityv1.ActivateX509AuthorityRequest{AuthorityId: prepared.PreparedAuthority.AuthorityId})
	need("x509 activate", err)
	say("x509 activate", nil, active.ActivatedAuthority.AuthorityId == prepared.PreparedAuthority.AuthorityId)
	old := before.Active.AuthorityId
	_, err = api.RevokeX509Authority(c.ctx, &localauthorityv1.RevokeX509AuthorityRequest{AuthorityId: old})
	say("x509 revoke untainted", err)
	tainted, err := api.TaintX509Authority(c.ctx, &localauthorityv1.TaintX509AuthorityRequest{AuthorityId: old})
	say("x509 taint", err, tainted.GetTaintedAuthority().GetAuthorityId() == old)
	_, err = api.TaintX509Authority(c.ctx, &localauthorityv1.TaintX509AuthorityRequest{AuthorityId: old})
	say("x509 taint again", err)
	revoked, err := api.RevokeX509Authority(c.ctx, &localauthorityv1.RevokeX509AuthorityRequest{AuthorityId: old})
	say("x509 revoke", err, revoked.GetRevokedAuthority().GetAuthorityId() == old)
	_, err = api.TaintX509UpstreamAuthority(c.ctx, &localauthorityv1.TaintX509UpstreamAuthorityRequest{SubjectKeyId: old})
	say("x509 taint upstream", err)

	signer, err := api.GetJWTAuthorityState(c.ctx, &localauthorityv1.GetJWTAuthorityStateRequest{})
	need("jwt state", err)
	next, err := api.PrepareJWTAuthority(c.ctx, &localauthorityv1.PrepareJWTAuthorityRequest{})
	need("jwt prepare", err)
	_, err = api.ActivateJWTAuthority(c.ctx, &localauthorityv1.ActivateJWTAuthorityRequest{AuthorityId: next.PreparedAuthority.AuthorityId})
	say("jwt activate", err, "")
	_, err = api.TaintJWTAuthority(c.ctx, &localauthorityv1.TaintJWTAuthorityRequest{AuthorityId: signer.Active.AuthorityId})
	say("jwt taint", err, "")
	_, err = api.RevokeJWTAuthority(c.ctx, &localauthorityv1.RevokeJWTAuthorityRequest{AuthorityId: signer.Active.AuthorityId})
	say("jwt revoke", err, "")
	_, err = api.GetWITAuthorityState(c.ctx, &localauthorityv1.GetWITAuthorityStateRequest{})
	say("wit state", err, "")
}
