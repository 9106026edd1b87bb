package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"time"

	credentialcomposerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/credentialcomposer/v1"
	upstreamauthorityv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/upstreamauthority/v1"
	"github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
)

// upstreamAuthority mints by a CA that it makes, and tells of a second root a moment later. It publishes nothing.
type upstreamAuthority struct {
	upstreamauthorityv1.UnimplementedUpstreamAuthorityServer
	configured
}

func (p *upstreamAuthority) MintX509CAAndSubscribe(req *upstreamauthorityv1.MintX509CARequest, stream upstreamauthorityv1.UpstreamAuthority_MintX509CAAndSubscribeServer) error {
	csr, err := x509.ParseCertificateRequest(req.Csr)
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	root, key, err := newRoot("first")
	if err != nil {
		return err
	}
	other, _, err := newRoot("second")
	if err != nil {
		return err
	}
	now := time.Now()
	minted, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber:          big.NewInt(now.UnixNano()),
		Subject:               csr.Subject,
		URIs:                  csr.URIs,
		NotBefore:             now.Add(-time.Minute),
		NotAfter:              now.Add(time.Duration(req.PreferredTtl) * time.Second),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}, root, csr.PublicKey, key)
	if err != nil {
		return err
	}
	first := &upstreamauthorityv1.MintX509CAResponse{
		X509CaChain:       []*types.X509Certificate{{Asn1: minted}},
		UpstreamX509Roots: []*types.X509Certificate{{Asn1: root.Raw}},
	}
	if err := stream.Send(first); err != nil {
		return err
	}
	time.Sleep(100 * time.Millisecond)
	if err := stream.Send(&upstreamauthorityv1.MintX509CAResponse{
		UpstreamX509Roots: []*types.X509Certificate{{Asn1: root.Raw}, {Asn1: other.Raw}},
	}); err != nil {
		return err
	}
	<-stream.Context().Done()
	p.log.Info("Subscription ended")
	return stream.Context().Err()
}

func newRoot(name string) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(now.UnixNano()),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(48 * time.Hour),
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, err
	}
	root, err := x509.ParseCertificate(der)
	return root, key, err
}

// credentialComposer gives workloads a DNS name and a claim, and leaves everything else alone.
type credentialComposer struct {
	credentialcomposerv1.UnimplementedCredentialComposerServer
	configured
}

func (p *credentialComposer) ComposeWorkloadX509SVID(_ context.Context, req *credentialcomposerv1.ComposeWorkloadX509SVIDRequest) (*credentialcomposerv1.ComposeWorkloadX509SVIDResponse, error) {
	req.Attributes.DnsSans = append(req.Attributes.DnsSans, "composed.example.org")
	return &credentialcomposerv1.ComposeWorkloadX509SVIDResponse{Attributes: req.Attributes}, nil
}

func (p *credentialComposer) ComposeWorkloadJWTSVID(_ context.Context, req *credentialcomposerv1.ComposeWorkloadJWTSVIDRequest) (*credentialcomposerv1.ComposeWorkloadJWTSVIDResponse, error) {
	req.Attributes.Claims.Fields["composed"] = structpb.NewStringValue("in Go")
	return &credentialcomposerv1.ComposeWorkloadJWTSVIDResponse{Attributes: req.Attributes}, nil
}
