package main

import (
	"crypto/x509"

	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	trustdomainv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/trustdomain/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
)

func (c *client) mint() {
	api := svidv1.NewSVIDClient(c.admin)
	key := newKey()
	minted, err := api.MintX509SVID(c.ctx, &svidv1.MintX509SVIDRequest{Csr: request(key, "spiffe://example.org/minted"), Ttl: 60})
	need("mint x509", err)
	leaf, err := x509.ParseCertificate(minted.Svid.CertChain[0])
	need("mint x509", err)
	say("mint x509", nil, leaf.URIs[0], minted.Svid.Id.Path, leaf.NotAfter.Unix() == minted.Svid.ExpiresAt)
	_, err = api.MintX509SVID(c.ctx, &svidv1.MintX509SVIDRequest{Csr: request(key, "spiffe://other.org/minted")})
	say("mint x509 foreign", err)
	_, err = api.MintX509SVID(c.ctx, &svidv1.MintX509SVIDRequest{})
	say("mint x509 without CSR", err)
	token, err := api.MintJWTSVID(c.ctx, &svidv1.MintJWTSVIDRequest{Id: id("/minted"), Audience: []string{"a"}, Ttl: 60})
	say("mint jwt", err, token.GetSvid().GetId().GetPath(), token.GetSvid().GetExpiresAt()-token.GetSvid().GetIssuedAt())
	_, err = api.MintJWTSVID(c.ctx, &svidv1.MintJWTSVIDRequest{Id: id("/minted")})
	say("mint jwt without audience", err)
}

func (c *client) bundles() {
	api := bundlev1.NewBundleClient(c.admin)
	own, err := api.GetBundle(c.ctx, &bundlev1.GetBundleRequest{})
	need("bundle get", err)
	say("bundle get", nil, own.TrustDomain, len(own.X509Authorities), len(own.JwtAuthorities))
	masked, err := api.GetBundle(c.ctx, &bundlev1.GetBundleRequest{OutputMask: &types.BundleMask{X509Authorities: true}})
	say("bundle get masked", err, len(masked.GetX509Authorities()), len(masked.GetJwtAuthorities()))
	foreign := &types.Bundle{TrustDomain: "other.org", X509Authorities: own.X509Authorities, RefreshHint: 99}
	set, err := api.BatchSetFederatedBundle(c.ctx, &bundlev1.BatchSetFederatedBundleRequest{
		Bundle: []*types.Bundle{foreign, {TrustDomain: trustDomain}, {TrustDomain: "not a name"}},
	})
	need("bundle set", err)
	for _, result := range set.Results {
		say("bundle set", nil, result.Status.Code, result.Status.Message, result.Bundle.GetTrustDomain())
	}
	created, err := api.BatchCreateFederatedBundle(c.ctx, &bundlev1.BatchCreateFederatedBundleRequest{Bundle: []*types.Bundle{foreign}})
	need("bundle create", err)
	say("bundle create again", nil, created.Results[0].Status.Code, created.Results[0].Status.Message)
	listed, err := api.ListFederatedBundles(c.ctx, &bundlev1.ListFederatedBundlesRequest{})
	need("bundle list", err)
	say("bundle list", nil, len(listed.Bundles), listed.Bundles[0].TrustDomain, listed.Bundles[0].RefreshHint)
	count, err := api.CountBundles(c.ctx, &bundlev1.CountBundlesRequest{})
	say("bundle count", err, count.GetCount())
	_, err = api.GetFederatedBundle(c.ctx, &bundlev1.GetFederatedBundleRequest{TrustDomain: "none.org"})
	say("bundle get none", err)
	deleted, err := api.BatchDeleteFederatedBundle(c.ctx, &bundlev1.BatchDeleteFederatedBundleRequest{
		TrustDomains: []string{"other.org", "none.org", trustDomain},
	})
	need("bundle delete", err)
	for _, result := range deleted.Results {
		say("bundle delete", nil, result.TrustDomain, result.Status.Code, result.Status.Message)
	}
	_, err = api.PublishJWTAuthority(c.ctx, &bundlev1.PublishJWTAuthorityRequest{})
	say("bundle publish as operator", err)
}

func (c *client) relationships() {
	api := trustdomainv1.NewTrustDomainClient(c.admin)
	web := &types.FederationRelationship{
		TrustDomain: "web.org", BundleEndpointUrl: "https://web.example/bundle",
		BundleEndpointProfile: &types.FederationRelationship_HttpsWeb{HttpsWeb: &types.HTTPSWebProfile{}},
	}
	plain := &types.FederationRelationship{
		TrustDomain: "plain.org", BundleEndpointUrl: "http://plain.example/bundle",
		BundleEndpointProfile: &types.FederationRelationship_HttpsWeb{HttpsWeb: &types.HTTPSWebProfile{}},
	}
	created, err := api.BatchCreateFederationRelationship(c.ctx, &trustdomainv1.BatchCreateFederationRelationshipRequest{
		FederationRelationships: []*types.FederationRelationship{web, plain},
	})
	need("federation create", err)
	for _, result := range created.Results {
		say("federation create", nil, result.Status.Code, result.Status.Message)
	}
	listed, err := api.ListFederationRelationships(c.ctx, &trustdomainv1.ListFederationRelationshipsRequest{})
	need("federation list", err)
	say("federation list", nil, len(listed.FederationRelationships), listed.FederationRelationships[0].BundleEndpointUrl)
	_, err = api.GetFederationRelationship(c.ctx, &trustdomainv1.GetFederationRelationshipRequest{TrustDomain: "none.org"})
	say("federation get none", err)
	deleted, err := api.BatchDeleteFederationRelationship(c.ctx, &trustdomainv1.BatchDeleteFederationRelationshipRequest{
		TrustDomains: []string{"web.org", "none.org"},
	})
	need("federation delete", err)
	for _, result := range deleted.Results {
		say("federation delete", nil, result.TrustDomain, result.Status.Code, result.Status.Message)
	}
}
