package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net/url"
	"slices"
	"time"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	debugv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/debug/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	loggerv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/logger/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
)

func newKey() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	need("key", err)
	return key
}

// request makes a CSR; without an ID it proves possession and says nothing else.
func request(key *ecdsa.PrivateKey, spiffeID string) []byte {
	template := &x509.CertificateRequest{}
	if spiffeID != "" {
		parsed, err := url.Parse(spiffeID)
		need("request", err)
		template.URIs = []*url.URL{parsed}
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	need("request", err)
	return csr
}

// connect dials the agents' port. The server's certificate has no host name; its name is checked by its SPIFFE ID.
func (c *client) connect(identity *tls.Certificate) *grpc.ClientConn {
	config := &tls.Config{
		InsecureSkipVerify: true,
		MinVersion:         tls.VersionTLS13,
		VerifyPeerCertificate: func(chain [][]byte, _ [][]*x509.Certificate) error {
			leaf, err := x509.ParseCertificate(chain[0])
			if err == nil && (len(leaf.URIs) != 1 || leaf.URIs[0].String() != "spiffe://example.org/spire/server") {
				err = errors.New("not the server")
			}
			return err
		},
	}
	if identity != nil {
		config.Certificates = []tls.Certificate{*identity}
	}
	made, err := grpc.NewClient(c.address, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	need("connect", err)
	return made
}

func (c *client) attest(key *ecdsa.PrivateKey, token string) (*agentv1.AttestAgentResponse_Result, error) {
	stranger := c.connect(nil)
	defer stranger.Close()
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	stream, err := agentv1.NewAgentClient(stranger).AttestAgent(ctx)
	need("attest", err)
	err = stream.Send(&agentv1.AttestAgentRequest{Step: &agentv1.AttestAgentRequest_Params_{Params: &agentv1.AttestAgentRequest_Params{
		Data:   &types.AttestationData{Type: "join_token", Payload: []byte(token)},
		Params: &agentv1.AgentX509SVIDParams{Csr: request(key, "")},
	}}})
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	answer, err := stream.Recv()
	return answer.GetResult(), err
}

func (c *client) agents() {
	operator := agentv1.NewAgentClient(c.admin)
	token, err := operator.CreateJoinToken(c.ctx, &agentv1.CreateJoinTokenRequest{Ttl: 600, Token: "the-token", AgentId: id("/host")})
	need("token", err)
	say("token", nil, token.Value)
	_, err = operator.CreateJoinToken(c.ctx, &agentv1.CreateJoinTokenRequest{})
	say("token without ttl", err)

	key := newKey()
	result, err := c.attest(key, "the-token")
	need("attest", err)
	say("attest", nil, result.Svid.Id.Path, result.Reattestable)
	_, err = c.attest(key, "the-token")
	say("attest again", err)

	agent := c.connect(&tls.Certificate{Certificate: result.Svid.CertChain, PrivateKey: key})
	defer agent.Close()
	c.asAgent(agent, key)

	listed, err := operator.ListAgents(c.ctx, &agentv1.ListAgentsRequest{})
	need("agent list", err)
	shown := listed.Agents[0]
	say("agent list", nil, len(listed.Agents), shown.Id.Path, shown.AttestationType, shown.Banned, shown.CanReattest, shown.AgentVersion)
	_, err = operator.BanAgent(c.ctx, &agentv1.BanAgentRequest{Id: shown.Id})
	need("agent ban", err)
	_, err = entryv1.NewEntryClient(agent).GetAuthorizedEntries(c.ctx, &entryv1.GetAuthorizedEntriesRequest{})
	say("agent banned", err, "")
	for _, detail := range status.Convert(err).Details() {
		if reason, ok := detail.(*types.PermissionDeniedDetails); ok {
			say("agent banned", nil, reason.Reason)
		}
	}
	_, err = operator.DeleteAgent(c.ctx, &agentv1.DeleteAgentRequest{Id: shown.Id})
	need("agent delete", err)
	_, err = operator.GetAgent(c.ctx, &agentv1.GetAgentRequest{Id: shown.Id})
	say("agent gone", err)
}

// authorized waits until an entry is among those that the agent may have: a server may take seconds to see it.
func (c *client) authorized(api entryv1.EntryClient, name string) *entryv1.GetAuthorizedEntriesResponse {
	for {
		found, err := api.GetAuthorizedEntries(c.ctx, &entryv1.GetAuthorizedEntriesRequest{})
		need("authorized", err)
		if slices.Contains(names(found.Entries), name) {
			return found
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// asAgent does what an agent does, and what it may not.
func (c *client) asAgent(agent grpc.ClientConnInterface, key *ecdsa.PrivateKey) {
	entries := entryv1.NewEntryClient(agent)
	authorized := c.authorized(entries, "one")
	stream, err := entries.SyncAuthorizedEntries(c.ctx)
	need("sync", err)
	need("sync", stream.Send(&entryv1.SyncAuthorizedEntriesRequest{}))
	revisions, err := stream.Recv()
	need("sync", err)
	need("sync", stream.CloseSend())
	say("authorized", nil, len(authorized.Entries) == len(revisions.EntryRevisions)+len(revisions.Entries))

	svids := svidv1.NewSVIDClient(agent)
	signed, err := svids.BatchNewX509SVID(c.ctx, &svidv1.BatchNewX509SVIDRequest{Params: []*svidv1.NewX509SVIDParams{
		{EntryId: "one", Csr: request(key, "")},
		{EntryId: "none", Csr: request(key, "")},
		{EntryId: "one", Csr: []byte("no CSR")},
	}})
	need("sign", err)
	for _, result := range signed.Results {
		say("sign", nil, result.Status.Code, result.Svid.GetId().GetPath())
	}
	token, err := svids.NewJWTSVID(c.ctx, &svidv1.NewJWTSVIDRequest{EntryId: "one", Audience: []string{"a"}})
	say("sign jwt", err, token.GetSvid().GetId().GetPath())
	operator := agentv1.NewAgentClient(agent)
	_, err = operator.PostStatus(c.ctx, &agentv1.PostStatusRequest{AgentVersion: "9.9"})
	say("status", err, "")
	renewed, err := operator.RenewAgent(c.ctx, &agentv1.RenewAgentRequest{Params: &agentv1.AgentX509SVIDParams{Csr: request(key, "")}})
	say("renew", err, renewed.GetSvid().GetId().GetPath())
	bundle, err := bundlev1.NewBundleClient(agent).GetBundle(c.ctx, &bundlev1.GetBundleRequest{})
	say("bundle as agent", err, bundle.GetTrustDomain())
	_, err = entries.ListEntries(c.ctx, &entryv1.ListEntriesRequest{})
	say("entry list as agent", err)
	_, err = loggerv1.NewLoggerClient(agent).GetLogger(c.ctx, &loggerv1.GetLoggerRequest{})
	say("logger as agent", err)
	_, err = debugv1.NewDebugClient(agent).GetInfo(c.ctx, &debugv1.GetInfoRequest{})
	say("debug as agent", err)
}
