package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"os"

	delegatedidentityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/delegatedidentity/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
)

const noProcess = 1<<31 - 1 // more than any kernel's pid_max

func selector(value string) []*types.Selector {
	return []*types.Selector{{Type: "test", Value: value}}
}

func delegate(ctx context.Context, conn *grpc.ClientConn) {
	client := delegatedidentityv1.NewDelegatedIdentityClient(conn)
	svids := func(step string, request *delegatedidentityv1.SubscribeToX509SVIDsRequest) {
		response, err := first(client.SubscribeToX509SVIDs(ctx, request))
		say(step, err, x509SVIDs(response)...)
	}
	svids("x509 by selectors", &delegatedidentityv1.SubscribeToX509SVIDsRequest{Selectors: selector("a")})
	svids("x509 of several", &delegatedidentityv1.SubscribeToX509SVIDsRequest{
		Selectors: append(selector("a"), selector("b")...),
	})
	svids("x509 by pid", &delegatedidentityv1.SubscribeToX509SVIDsRequest{Pid: int32(os.Getpid())})
	svids("x509 of nobody", &delegatedidentityv1.SubscribeToX509SVIDsRequest{Selectors: selector("none")})
	svids("x509 of no process", &delegatedidentityv1.SubscribeToX509SVIDsRequest{Pid: noProcess})
	svids("x509 of a negative pid", &delegatedidentityv1.SubscribeToX509SVIDsRequest{Pid: -1})
	svids("x509 by neither", &delegatedidentityv1.SubscribeToX509SVIDsRequest{})
	svids("x509 by both", &delegatedidentityv1.SubscribeToX509SVIDsRequest{Selectors: selector("a"), Pid: 1})
	svids("x509 by half a selector", &delegatedidentityv1.SubscribeToX509SVIDsRequest{Selectors: selector("")})
	svids("x509 by an odd selector", &delegatedidentityv1.SubscribeToX509SVIDsRequest{
		Selectors: []*types.Selector{{Type: "a:b", Value: "c"}},
	})

	bundles, err := first(client.SubscribeToX509Bundles(ctx, &delegatedidentityv1.SubscribeToX509BundlesRequest{}))
	say("x509 bundles", err, counts(bundles.GetCaCertificates(), certificates)...)
	documents, err := first(client.SubscribeToJWTBundles(ctx, &delegatedidentityv1.SubscribeToJWTBundlesRequest{}))
	say("jwt bundles", err, counts(documents.GetBundles(), keys)...)

	tokens := func(step string, request *delegatedidentityv1.FetchJWTSVIDsRequest) {
		response, err := client.FetchJWTSVIDs(ctx, request)
		say(step, err, jwtSVIDs(response)...)
	}
	audience := []string{"one", "two"}
	tokens("jwt by selectors", &delegatedidentityv1.FetchJWTSVIDsRequest{Audience: audience, Selectors: selector("a")})
	tokens("jwt by pid", &delegatedidentityv1.FetchJWTSVIDsRequest{Audience: audience, Pid: int32(os.Getpid())})
	tokens("jwt of nobody", &delegatedidentityv1.FetchJWTSVIDsRequest{Audience: audience, Selectors: selector("none")})
	tokens("jwt of no process", &delegatedidentityv1.FetchJWTSVIDsRequest{Audience: audience, Pid: noProcess})
	tokens("jwt without audience", &delegatedidentityv1.FetchJWTSVIDsRequest{Selectors: selector("a")})
	tokens("jwt by neither", &delegatedidentityv1.FetchJWTSVIDsRequest{Audience: audience})
}

func x509SVIDs(response *delegatedidentityv1.SubscribeToX509SVIDsResponse) []any {
	var values []any
	for _, svid := range response.GetX509Svids() {
		leaf, err := x509.ParseCertificate(svid.X509Svid.CertChain[0])
		need("certificate", err)
		_, err = x509.ParsePKCS8PrivateKey(svid.X509SvidKey)
		need("key", err)
		values = append(values, leaf.URIs[0].String(), len(svid.X509Svid.CertChain), svid.X509Svid.Hint,
			leaf.NotAfter.Unix() == svid.X509Svid.ExpiresAt, svid.X509Svid.Id.Path)
	}
	return append(values, response.GetFederatesWith())
}

func jwtSVIDs(response *delegatedidentityv1.FetchJWTSVIDsResponse) []any {
	var values []any
	for _, svid := range response.GetSvids() {
		values = append(values, svid.Id.TrustDomain, svid.Id.Path, svid.Hint, svid.ExpiresAt-svid.IssuedAt, svid.Token != "")
	}
	return values
}

// counts has what a map from trust domains holds: how many of each, told by count.
func counts(bundles map[string][]byte, count func([]byte) int) []any {
	found := map[string]int{}
	for trustDomain, bundle := range bundles {
		found[trustDomain] = count(bundle)
	}
	return []any{found}
}

func certificates(bundle []byte) int {
	found, err := x509.ParseCertificates(bundle)
	need("bundle", err)
	return len(found)
}

func keys(bundle []byte) int {
	var document struct{ Keys []any }
	need("JWKS", json.Unmarshal(bundle, &document))
	return len(document.Keys)
}
