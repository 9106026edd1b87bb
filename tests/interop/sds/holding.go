package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"sort"
	"time"

	tlsapi "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// holding is what a party has from the service: what it shows, and what it verifies others with.
type holding struct {
	names        []string
	certificate  *tls.Certificate
	trustDomains map[string]*x509.CertPool // by name
	authorities  int
}

func take(resources []*anypb.Any) (*holding, error) {
	held := &holding{}
	for _, each := range resources {
		if err := held.put(each); err != nil {
			return nil, err
		}
	}
	return held, nil
}

func (held *holding) put(packed *anypb.Any) error {
	if packed.GetTypeUrl() != typeURL {
		return fmt.Errorf("a resource of type %q", packed.GetTypeUrl())
	}
	secret := &tlsapi.Secret{}
	if err := packed.UnmarshalTo(secret); err != nil {
		return err
	}
	if err := secret.ValidateAll(); err != nil {
		return fmt.Errorf("not as the published rules have it: %w", err)
	}
	if unknown := secret.ProtoReflect().GetUnknown(); len(unknown) > 0 {
		return fmt.Errorf("%s has fields that nobody knows", secret.GetName())
	}
	held.names = append(held.names, secret.GetName())
	switch secret.GetType().(type) {
	case *tlsapi.Secret_TlsCertificate:
		return held.putCertificate(secret.GetTlsCertificate())
	case *tlsapi.Secret_ValidationContext:
		return held.putContext(secret.GetValidationContext())
	}
	return fmt.Errorf("%s is neither a certificate nor a validation context", secret.GetName())
}

func (held *holding) putCertificate(given *tlsapi.TlsCertificate) error {
	chain, key := given.GetCertificateChain().GetInlineBytes(), given.GetPrivateKey().GetInlineBytes()
	certificate, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return err
	}
	if certificate.Leaf, err = x509.ParseCertificate(certificate.Certificate[0]); err != nil {
		return err
	}
	held.certificate = &certificate
	return nil
}

func (held *holding) putContext(given *tlsapi.CertificateValidationContext) error {
	extension := given.GetCustomValidatorConfig()
	if extension.GetName() != "envoy.tls.cert_validator.spiffe" {
		return fmt.Errorf("validator %q", extension.GetName())
	}
	message, err := extension.GetTypedConfig().UnmarshalNew()
	if err != nil {
		return err
	}
	config, fits := message.(*tlsapi.SPIFFECertValidatorConfig)
	if !fits {
		return fmt.Errorf("the validator's settings are a %s", proto.MessageName(message))
	}
	held.trustDomains, held.authorities = map[string]*x509.CertPool{}, 0
	for _, each := range config.GetTrustDomains() {
		pool := x509.NewCertPool()
		rest := each.GetTrustBundle().GetInlineBytes()
		for {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil {
				break
			}
			authority, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return err
			}
			pool.AddCert(authority)
			held.authorities++
		}
		held.trustDomains[each.GetName()] = pool
	}
	return nil
}

// verify does as Envoy's SPIFFE validator: the bundle of the trust domain that the peer names is what counts.
func (held *holding) verify(leaf *x509.Certificate, above []*x509.Certificate) error {
	if len(leaf.URIs) != 1 || leaf.URIs[0].Scheme != "spiffe" {
		return errors.New("the peer has no SPIFFE ID")
	}
	roots, known := held.trustDomains[leaf.URIs[0].Host]
	if !known {
		return fmt.Errorf("the peer is of %s, which is not trusted", leaf.URIs[0].Host)
	}
	intermediates := x509.NewCertPool()
	for _, each := range above {
		intermediates.AddCert(each)
	}
	_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return err
}

func (held *holding) describe() (map[string]any, error) {
	names := append([]string{}, held.names...)
	sort.Strings(names)
	fields := map[string]any{"names": names, "authorities": held.authorities, "seen": time.Now().UnixMilli()}
	if held.certificate == nil {
		return fields, nil
	}
	leaf := held.certificate.Leaf
	fields["id"] = leaf.URIs[0].String()
	fields["serial"] = leaf.SerialNumber.Text(16)
	fields["not_after"] = leaf.NotAfter.Unix()
	fields["authority"] = fmt.Sprintf("%x", leaf.AuthorityKeyId)
	if held.trustDomains == nil {
		return fields, nil
	}
	return fields, held.verify(leaf, nil)
}
