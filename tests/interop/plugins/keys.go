package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"sync"

	agentkeymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/keymanager/v1"
	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/keymanager/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// keys are in memory; they end with the plugin.
type keys struct {
	mu    sync.Mutex
	store map[string]*pair
}

type pair struct {
	signer      crypto.Signer
	keyType     int32
	pkix        []byte
	fingerprint string
}

func newKeys() *keys { return &keys{store: map[string]*pair{}} }

func (k *keys) generate(id string, keyType int32) (*pair, error) {
	if id == "" {
		return nil, status.Error(codes.InvalidArgument, "key id is required")
	}
	var signer crypto.Signer
	var err error
	switch keymanagerv1.KeyType(keyType) {
	case keymanagerv1.KeyType_EC_P256:
		signer, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case keymanagerv1.KeyType_EC_P384:
		signer, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case keymanagerv1.KeyType_RSA_2048:
		signer, err = rsa.GenerateKey(rand.Reader, 2048)
	case keymanagerv1.KeyType_RSA_4096:
		signer, err = rsa.GenerateKey(rand.Reader, 4096)
	default:
		return nil, status.Error(codes.InvalidArgument, "key type is required")
	}
	if err != nil {
		return nil, err
	}
	pkix, err := x509.MarshalPKIXPublicKey(signer.Public())
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(pkix)
	made := &pair{signer: signer, keyType: keyType, pkix: pkix, fingerprint: hex.EncodeToString(sum[:])}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.store[id] = made
	return made, nil
}

func (k *keys) find(id string) *pair {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.store[id]
}

func (k *keys) sign(id string, digest []byte, opts crypto.SignerOpts) ([]byte, string, error) {
	found := k.find(id)
	if found == nil {
		return nil, "", status.Errorf(codes.NotFound, "key %q not found", id)
	}
	signature, err := found.signer.Sign(rand.Reader, digest, opts)
	if err != nil {
		return nil, "", status.Error(codes.Internal, err.Error())
	}
	return signature, found.fingerprint, nil
}

func (p *serverKeyManager) public(id string, found *pair) *keymanagerv1.PublicKey {
	if found == nil {
		return nil
	}
	return &keymanagerv1.PublicKey{
		Id: id, Type: keymanagerv1.KeyType(found.keyType), PkixData: found.pkix, Fingerprint: found.fingerprint,
	}
}

func (p *serverKeyManager) GenerateKey(_ context.Context, req *keymanagerv1.GenerateKeyRequest) (*keymanagerv1.GenerateKeyResponse, error) {
	made, err := p.generate(req.KeyId, int32(req.KeyType))
	if err != nil {
		return nil, err
	}
	return &keymanagerv1.GenerateKeyResponse{PublicKey: p.public(req.KeyId, made)}, nil
}

func (p *serverKeyManager) GetPublicKey(_ context.Context, req *keymanagerv1.GetPublicKeyRequest) (*keymanagerv1.GetPublicKeyResponse, error) {
	return &keymanagerv1.GetPublicKeyResponse{PublicKey: p.public(req.KeyId, p.find(req.KeyId))}, nil
}

func (p *serverKeyManager) GetPublicKeys(context.Context, *keymanagerv1.GetPublicKeysRequest) (*keymanagerv1.GetPublicKeysResponse, error) {
	p.keys.mu.Lock()
	defer p.keys.mu.Unlock()
	resp := &keymanagerv1.GetPublicKeysResponse{}
	for id, found := range p.store {
		resp.PublicKeys = append(resp.PublicKeys, p.public(id, found))
	}
	return resp, nil
}

func (p *serverKeyManager) SignData(_ context.Context, req *keymanagerv1.SignDataRequest) (*keymanagerv1.SignDataResponse, error) {
	var opts crypto.SignerOpts = crypto.Hash(req.GetHashAlgorithm())
	if pss := req.GetPssOptions(); pss != nil {
		opts = &rsa.PSSOptions{SaltLength: int(pss.SaltLength), Hash: crypto.Hash(pss.HashAlgorithm)}
	}
	signature, fingerprint, err := p.sign(req.KeyId, req.Data, opts)
	if err != nil {
		return nil, err
	}
	return &keymanagerv1.SignDataResponse{Signature: signature, KeyFingerprint: fingerprint}, nil
}

func (p *agentKeyManager) public(id string, found *pair) *agentkeymanagerv1.PublicKey {
	if found == nil {
		return nil
	}
	return &agentkeymanagerv1.PublicKey{
		Id: id, Type: agentkeymanagerv1.KeyType(found.keyType), PkixData: found.pkix, Fingerprint: found.fingerprint,
	}
}

func (p *agentKeyManager) GenerateKey(_ context.Context, req *agentkeymanagerv1.GenerateKeyRequest) (*agentkeymanagerv1.GenerateKeyResponse, error) {
	made, err := p.generate(req.KeyId, int32(req.KeyType))
	if err != nil {
		return nil, err
	}
	return &agentkeymanagerv1.GenerateKeyResponse{PublicKey: p.public(req.KeyId, made)}, nil
}

func (p *agentKeyManager) GetPublicKey(_ context.Context, req *agentkeymanagerv1.GetPublicKeyRequest) (*agentkeymanagerv1.GetPublicKeyResponse, error) {
	return &agentkeymanagerv1.GetPublicKeyResponse{PublicKey: p.public(req.KeyId, p.find(req.KeyId))}, nil
}

func (p *agentKeyManager) GetPublicKeys(context.Context, *agentkeymanagerv1.GetPublicKeysRequest) (*agentkeymanagerv1.GetPublicKeysResponse, error) {
	p.keys.mu.Lock()
	defer p.keys.mu.Unlock()
	resp := &agentkeymanagerv1.GetPublicKeysResponse{}
	for id, found := range p.store {
		resp.PublicKeys = append(resp.PublicKeys, p.public(id, found))
	}
	return resp, nil
}

func (p *agentKeyManager) SignData(_ context.Context, req *agentkeymanagerv1.SignDataRequest) (*agentkeymanagerv1.SignDataResponse, error) {
	var opts crypto.SignerOpts = crypto.Hash(req.GetHashAlgorithm())
	if pss := req.GetPssOptions(); pss != nil {
		opts = &rsa.PSSOptions{SaltLength: int(pss.SaltLength), Hash: crypto.Hash(pss.HashAlgorithm)}
	}
	signature, fingerprint, err := p.sign(req.KeyId, req.Data, opts)
	if err != nil {
		return nil, err
	}
	return &agentkeymanagerv1.SignDataResponse{Signature: signature, KeyFingerprint: fingerprint}, nil
}
