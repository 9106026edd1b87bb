// External plugins on the published SDK, for hosts to load. The first argument names the one to serve; each logs its
// configuration and what the host services answer, for tests to read in the host's log.
package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/hashicorp/go-hclog"
	"github.com/spiffe/spire-plugin-sdk/pluginmain"
	"github.com/spiffe/spire-plugin-sdk/pluginsdk"
	agentstorev1 "github.com/spiffe/spire-plugin-sdk/proto/spire/hostservice/server/agentstore/v1"
	identityproviderv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/hostservice/server/identityprovider/v1"
	agentkeymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/keymanager/v1"
	agentnodeattestorv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/nodeattestor/v1"
	svidstorev1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/svidstore/v1"
	workloadattestorv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/workloadattestor/v1"
	bundlepublisherv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/bundlepublisher/v1"
	credentialcomposerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/credentialcomposer/v1"
	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/keymanager/v1"
	nodeattestorv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/nodeattestor/v1"
	notifierv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/notifier/v1"
	upstreamauthorityv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/upstreamauthority/v1"
	configv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

func main() {
	name := ""
	if len(os.Args) > 1 {
		name = os.Args[1]
	}
	switch name {
	case "server-keymanager":
		plugin := &serverKeyManager{keys: newKeys()}
		pluginmain.Serve(keymanagerv1.KeyManagerPluginServer(plugin), configv1.ConfigServiceServer(plugin))
	case "agent-keymanager":
		plugin := &agentKeyManager{keys: newKeys()}
		pluginmain.Serve(agentkeymanagerv1.KeyManagerPluginServer(plugin), configv1.ConfigServiceServer(plugin))
	case "server-nodeattestor":
		plugin := &serverNodeAttestor{}
		pluginmain.Serve(nodeattestorv1.NodeAttestorPluginServer(plugin), configv1.ConfigServiceServer(plugin))
	case "agent-nodeattestor":
		plugin := &agentNodeAttestor{}
		pluginmain.Serve(agentnodeattestorv1.NodeAttestorPluginServer(plugin), configv1.ConfigServiceServer(plugin))
	case "workloadattestor":
		plugin := &workloadAttestor{}
		pluginmain.Serve(workloadattestorv1.WorkloadAttestorPluginServer(plugin), configv1.ConfigServiceServer(plugin))
	case "bare-workloadattestor":
		pluginmain.Serve(workloadattestorv1.WorkloadAttestorPluginServer(&workloadAttestor{}))
	case "reference-workloadattestor":
		pluginmain.Serve(workloadattestorv1.WorkloadAttestorPluginServer(&referenceAttestor{}))
	case "svidstore":
		plugin := &svidStore{}
		pluginmain.Serve(svidstorev1.SVIDStorePluginServer(plugin), configv1.ConfigServiceServer(plugin))
	case "bundlepublisher":
		plugin := &bundlePublisher{}
		pluginmain.Serve(bundlepublisherv1.BundlePublisherPluginServer(plugin), configv1.ConfigServiceServer(plugin))
	case "notifier":
		plugin := &notifier{}
		pluginmain.Serve(notifierv1.NotifierPluginServer(plugin), configv1.ConfigServiceServer(plugin))
	case "upstreamauthority":
		plugin := &upstreamAuthority{}
		pluginmain.Serve(upstreamauthorityv1.UpstreamAuthorityPluginServer(plugin), configv1.ConfigServiceServer(plugin))
	case "credentialcomposer":
		plugin := &credentialComposer{}
		pluginmain.Serve(credentialcomposerv1.CredentialComposerPluginServer(plugin), configv1.ConfigServiceServer(plugin))
	default:
		os.Stderr.WriteString("no plugin has the name " + name + "\n")
		os.Exit(3)
	}
}

// configured is what every plugin here does with its configuration. One with the word `refuse` is refused.
type configured struct {
	configv1.UnimplementedConfigServer
	mu   sync.Mutex
	log  hclog.Logger
	text string
}

func (c *configured) SetLogger(log hclog.Logger) { c.log = log }

func (c *configured) Configure(_ context.Context, req *configv1.ConfigureRequest) (*configv1.ConfigureResponse, error) {
	if strings.Contains(req.HclConfiguration, "refuse") {
		return nil, status.Error(codes.InvalidArgument, "this configuration is refused")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.text = req.HclConfiguration
	c.log.Info("Told", "configuration", req.HclConfiguration, "trust_domain", req.CoreConfiguration.TrustDomain)
	return &configv1.ConfigureResponse{}, nil
}

func (c *configured) Validate(_ context.Context, req *configv1.ValidateRequest) (*configv1.ValidateResponse, error) {
	if strings.Contains(req.HclConfiguration, "refuse") {
		return &configv1.ValidateResponse{Valid: false, Notes: []string{"it says refuse"}}, nil
	}
	return &configv1.ValidateResponse{Valid: true}, nil
}

func (c *configured) Close() error {
	c.log.Info("Deinitialized")
	return nil
}

type serverKeyManager struct {
	keymanagerv1.UnimplementedKeyManagerServer
	configured
	*keys
}

type agentKeyManager struct {
	agentkeymanagerv1.UnimplementedKeyManagerServer
	configured
	*keys
}

type serverNodeAttestor struct {
	nodeattestorv1.UnimplementedNodeAttestorServer
	configured
	agents   agentstorev1.AgentStoreServiceClient
	identity identityproviderv1.IdentityProviderServiceClient
}

func (p *serverNodeAttestor) BrokerHostServices(broker pluginsdk.ServiceBroker) error {
	if !broker.BrokerClient(&p.agents) || !broker.BrokerClient(&p.identity) {
		return status.Error(codes.FailedPrecondition, "the host lacks a service")
	}
	return nil
}

// Attest takes the payload `name:NAME`, asks for the name backwards, and wants it without a mistake.
func (p *serverNodeAttestor) Attest(stream nodeattestorv1.NodeAttestor_AttestServer) error {
	request, err := stream.Recv()
	if err != nil {
		return err
	}
	name, found := strings.CutPrefix(string(request.GetPayload()), "name:")
	if !found {
		return status.Error(codes.InvalidArgument, "payload has no name")
	}
	if err := stream.Send(&nodeattestorv1.AttestResponse{
		Response: &nodeattestorv1.AttestResponse_Challenge{Challenge: []byte("backwards")},
	}); err != nil {
		return err
	}
	if request, err = stream.Recv(); err != nil {
		return err
	}
	if string(request.GetChallengeResponse()) != backwards(name) {
		return status.Error(codes.PermissionDenied, "wrong answer to the challenge")
	}
	id := "spiffe://example.org/spire/agent/go/" + name
	p.ask(stream.Context(), id)
	return stream.Send(&nodeattestorv1.AttestResponse{
		Response: &nodeattestorv1.AttestResponse_AgentAttributes{
			AgentAttributes: &nodeattestorv1.AgentAttributes{
				SpiffeId:       id,
				SelectorValues: []string{"name:" + name},
				CanReattest:    true,
			},
		},
	})
}

func (p *serverNodeAttestor) ask(ctx context.Context, id string) {
	_, err := p.agents.GetAgentInfo(ctx, &agentstorev1.GetAgentInfoRequest{AgentId: id})
	p.log.Info("Asked for the agent", "code", status.Code(err).String(), "text", status.Convert(err).Message())
	identity, err := p.identity.FetchX509Identity(ctx, &identityproviderv1.FetchX509IdentityRequest{})
	if err != nil {
		p.log.Error("Asked for the identity", "error", err)
		return
	}
	p.log.Info("Asked for the identity", "certificates", len(identity.Identity.CertChain),
		"key", len(identity.Identity.PrivateKey) > 0, "trust_domain", identity.Bundle.TrustDomain,
		"authorities", len(identity.Bundle.X509Authorities))
}

type agentNodeAttestor struct {
	agentnodeattestorv1.UnimplementedNodeAttestorServer
	configured
}

// AidAttestation sends its configuration's text as the name, and answers every challenge with it backwards.
func (p *agentNodeAttestor) AidAttestation(stream agentnodeattestorv1.NodeAttestor_AidAttestationServer) error {
	defer p.log.Info("Attestation ended")
	name := "one"
	if err := stream.Send(&agentnodeattestorv1.PayloadOrChallengeResponse{
		Data: &agentnodeattestorv1.PayloadOrChallengeResponse_Payload{Payload: []byte("name:" + name)},
	}); err != nil {
		return err
	}
	for {
		if _, err := stream.Recv(); err != nil {
			return err
		}
		answer := backwards(name)
		if strings.Contains(p.text, "wrong") {
			answer = "wrong"
		}
		if err := stream.Send(&agentnodeattestorv1.PayloadOrChallengeResponse{
			Data: &agentnodeattestorv1.PayloadOrChallengeResponse_ChallengeResponse{ChallengeResponse: []byte(answer)},
		}); err != nil {
			return err
		}
	}
}

func backwards(text string) string {
	var b strings.Builder
	for i := len(text) - 1; i >= 0; i-- {
		b.WriteByte(text[i])
	}
	return b.String()
}

type workloadAttestor struct {
	workloadattestorv1.UnimplementedWorkloadAttestorServer
	configured
}

func (p *workloadAttestor) Attest(_ context.Context, req *workloadattestorv1.AttestRequest) (*workloadattestorv1.AttestResponse, error) {
	if req.Pid <= 0 {
		return nil, status.Error(codes.InvalidArgument, "no process")
	}
	return &workloadattestorv1.AttestResponse{SelectorValues: []string{"every:process", "by:pid"}}, nil
}

// referenceAttestor knows references only.
type referenceAttestor struct {
	workloadattestorv1.UnimplementedWorkloadAttestorServer
}

func (p *referenceAttestor) AttestReference(ctx context.Context, req *workloadattestorv1.AttestReferenceRequest) (*workloadattestorv1.AttestReferenceResponse, error) {
	values := []string{"by:" + req.Reference.TypeUrl}
	if broker := metadata.ValueFromIncomingContext(ctx, "spire-agent-broker-caller-id"); len(broker) > 0 {
		values = append(values, "for:"+broker[0], fmt.Sprintf("value:%x", req.Reference.Value))
	}
	return &workloadattestorv1.AttestReferenceResponse{SelectorValues: values}, nil
}

type svidStore struct {
	svidstorev1.UnimplementedSVIDStoreServer
	configured
	stored sync.Map
}

func (p *svidStore) PutX509SVID(_ context.Context, req *svidstorev1.PutX509SVIDRequest) (*svidstorev1.PutX509SVIDResponse, error) {
	p.stored.Store(strings.Join(req.Metadata, ","), req)
	p.log.Info("Put", "spiffe_id", req.Svid.SpiffeID, "metadata", req.Metadata, "certificates", len(req.Svid.CertChain),
		"federated", len(req.FederatedBundles))
	return &svidstorev1.PutX509SVIDResponse{}, nil
}

func (p *svidStore) DeleteX509SVID(_ context.Context, req *svidstorev1.DeleteX509SVIDRequest) (*svidstorev1.DeleteX509SVIDResponse, error) {
	if _, found := p.stored.LoadAndDelete(strings.Join(req.Metadata, ",")); !found {
		return nil, status.Error(codes.InvalidArgument, "svidstore: nothing is stored there")
	}
	return &svidstorev1.DeleteX509SVIDResponse{}, nil
}
