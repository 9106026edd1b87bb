// Command served hosts a KeyManager plugin as SPIRE does, by go-plugin's client and the SDK's generated clients, and
// exercises it. Each line of its output is a fact, for the test to compare.
package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	_ "crypto/sha256"
	_ "crypto/sha512"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"sort"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"github.com/spiffe/spire-plugin-sdk/private"
	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/keymanager/v1"
	configv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

var (
	command   = flag.String("command", "", "the plugin")
	checksum  = flag.String("checksum", "", "its SHA-256 in hex")
	data      = flag.String("data", "", "its configuration")
	again     = flag.String("again", "", "a second configuration, put in force later")
	side      = flag.String("side", "server", "server or agent")
	mutualTLS = flag.Bool("mutual-tls", false, "have go-plugin's AutoMTLS")
	stay      = flag.Bool("stay", false, "stay when the plugin is loaded, until killed")
	rsaKeys   = flag.Bool("rsa", false, "make RSA keys, too")
	services  = flag.String("offer", "", "a host service to name")
	pause     = flag.Duration("pause", 0, "how long to wait when the plugin is configured")
)

func main() {
	flag.Parse()
	if err := run(context.Background()); err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
}

type plugin struct {
	goplugin.NetRPCUnsupportedPlugin
}

func (plugin) GRPCServer(*goplugin.GRPCBroker, *grpc.Server) error { return errors.New("a host") }

func (plugin) GRPCClient(_ context.Context, b *goplugin.GRPCBroker, c *grpc.ClientConn) (any, error) {
	listener, err := b.Accept(private.HostServiceProviderID)
	if err != nil {
		return nil, err
	}
	go func() { _ = grpc.NewServer().Serve(listener) }()
	return c, nil
}

// renamed makes the server's client speak to the agent's service, whose messages are the same.
type renamed struct{ grpc.ClientConnInterface }

func (r renamed) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	const prefix = "/spire.plugin.server."
	if *side == "agent" && len(method) > len(prefix) && method[:len(prefix)] == prefix {
		method = "/spire.plugin.agent." + method[len(prefix):]
	}
	return r.ClientConnInterface.Invoke(ctx, method, args, reply, opts...)
}

func run(ctx context.Context) error {
	sum, err := hex.DecodeString(*checksum)
	if err != nil {
		return err
	}
	config := &goplugin.ClientConfig{
		HandshakeConfig: goplugin.HandshakeConfig{
			ProtocolVersion: 1, MagicCookieKey: "KeyManager", MagicCookieValue: "KeyManager",
		},
		Cmd:              exec.Command(*command),
		AutoMTLS:         *mutualTLS,
		AllowedProtocols: []goplugin.Protocol{goplugin.ProtocolGRPC},
		Plugins:          map[string]goplugin.Plugin{"it": plugin{}},
		Logger:           hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: os.Stderr}),
	}
	if len(sum) > 0 {
		config.SecureConfig = &goplugin.SecureConfig{Checksum: sum, Hash: crypto.SHA256.New()}
	}
	client := goplugin.NewClient(config)
	defer client.Kill()
	protocol, err := client.Client()
	if err != nil {
		return err
	}
	if err := protocol.Ping(); err != nil {
		return err
	}
	raw, err := protocol.Dispense("it")
	if err != nil {
		return err
	}
	conn := renamed{raw.(*grpc.ClientConn)}
	var offered []string
	if *services != "" {
		offered = append(offered, *services)
	}
	names, err := private.Init(ctx, conn, offered)
	if err != nil {
		return err
	}
	fmt.Println("services:", names)
	if err := configure(ctx, conn, *data); err != nil {
		return err
	}
	time.Sleep(*pause)
	if *mutualTLS {
		strangers(ctx, client)
	}
	keys := keymanagerv1.NewKeyManagerClient(conn)
	if err := exercise(ctx, keys); err != nil {
		return err
	}
	if *again != "" {
		fmt.Println("again:", configure(ctx, conn, *again))
		if err := list(ctx, keys); err != nil {
			return err
		}
	}
	if *stay {
		fmt.Println("staying")
		time.Sleep(time.Hour)
	}
	started := time.Now()
	if err := private.Deinit(ctx, conn); err != nil {
		return err
	}
	client.Kill()
	fmt.Println("ended by itself:", client.Exited() && time.Since(started) < 2*time.Second)
	return nil
}

func configure(ctx context.Context, conn grpc.ClientConnInterface, text string) error {
	config := configv1.NewConfigClient(conn)
	core := &configv1.CoreConfiguration{TrustDomain: "example.org"}
	found, err := config.Validate(ctx, &configv1.ValidateRequest{CoreConfiguration: core, HclConfiguration: text})
	if err != nil {
		return err
	}
	fmt.Println("valid:", found.Valid, found.Notes)
	_, err = config.Configure(ctx, &configv1.ConfigureRequest{CoreConfiguration: core, HclConfiguration: text})
	return err
}

// strangers tries the socket without the certificate of this host.
func strangers(ctx context.Context, client *goplugin.Client) {
	conn, err := grpc.NewClient("unix:"+client.ReattachConfig().Addr.String(),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		fmt.Println("error:", err)
		return
	}
	defer conn.Close()
	_, err = keymanagerv1.NewKeyManagerClient(conn).GetPublicKeys(ctx, &keymanagerv1.GetPublicKeysRequest{})
	fmt.Println("without its certificate:", status.Code(err))
}

func list(ctx context.Context, keys keymanagerv1.KeyManagerClient) error {
	found, err := keys.GetPublicKeys(ctx, &keymanagerv1.GetPublicKeysRequest{})
	if err != nil {
		return err
	}
	var names []string
	for _, key := range found.PublicKeys {
		names = append(names, fmt.Sprintf("%s/%s/%.8s", key.Id, key.Type, key.Fingerprint))
	}
	sort.Strings(names)
	fmt.Println("keys:", names)
	return nil
}

func exercise(ctx context.Context, keys keymanagerv1.KeyManagerClient) error {
	if err := list(ctx, keys); err != nil {
		return err
	}
	types := []keymanagerv1.KeyType{keymanagerv1.KeyType_EC_P256, keymanagerv1.KeyType_EC_P384}
	if *rsaKeys {
		types = append(types, keymanagerv1.KeyType_RSA_2048, keymanagerv1.KeyType_RSA_4096)
	}
	for _, keyType := range types {
		made, err := keys.GenerateKey(ctx, &keymanagerv1.GenerateKeyRequest{KeyId: keyType.String(), KeyType: keyType})
		if err != nil {
			fmt.Println("generate", keyType, status.Code(err), status.Convert(err).Message())
			continue
		}
		for _, hash := range []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512} {
			if err := sign(ctx, keys, made.PublicKey, hash); err != nil {
				return fmt.Errorf("%s, %s: %w", keyType, hash, err)
			}
		}
		fmt.Println("signed with", keyType)
	}
	id := keymanagerv1.KeyType_EC_P256.String()
	if err := many(ctx, keys, id); err != nil {
		return err
	}
	refused(ctx, keys, id)
	return list(ctx, keys)
}

func many(ctx context.Context, keys keymanagerv1.KeyManagerClient, id string) error {
	var group sync.WaitGroup
	failures := make(chan error, 200)
	for range 200 {
		group.Add(1)
		go func() {
			defer group.Done()
			if _, err := keys.SignData(ctx, request(id, make([]byte, 32), crypto.SHA256)); err != nil {
				failures <- err
			}
		}()
	}
	group.Wait()
	select {
	case err := <-failures:
		return err
	default:
		fmt.Println("signed 200 at once")
		return nil
	}
}

func request(id string, digest []byte, hash crypto.Hash) *keymanagerv1.SignDataRequest {
	return &keymanagerv1.SignDataRequest{KeyId: id, Data: digest, SignerOpts: &keymanagerv1.SignDataRequest_HashAlgorithm{
		HashAlgorithm: keymanagerv1.HashAlgorithm(hash),
	}}
}

func pss(id string, digest []byte, hash crypto.Hash, salt int32) *keymanagerv1.SignDataRequest {
	return &keymanagerv1.SignDataRequest{KeyId: id, Data: digest, SignerOpts: &keymanagerv1.SignDataRequest_PssOptions{
		PssOptions: &keymanagerv1.SignDataRequest_PSSOptions{
			SaltLength: salt, HashAlgorithm: keymanagerv1.HashAlgorithm(hash),
		},
	}}
}

func sign(ctx context.Context, keys keymanagerv1.KeyManagerClient, public *keymanagerv1.PublicKey, hash crypto.Hash) error {
	parsed, err := x509.ParsePKIXPublicKey(public.PkixData)
	if err != nil {
		return err
	}
	hasher := hash.New()
	hasher.Write([]byte("message"))
	digest := hasher.Sum(nil)
	made, err := keys.SignData(ctx, request(public.Id, digest, hash))
	if err != nil {
		return err
	}
	if made.KeyFingerprint != public.Fingerprint {
		return errors.New("another key's fingerprint")
	}
	switch key := parsed.(type) {
	case *ecdsa.PublicKey:
		if !ecdsa.VerifyASN1(key, digest, made.Signature) {
			return errors.New("wrong signature")
		}
		return nil
	case *rsa.PublicKey:
		if err := rsa.VerifyPKCS1v15(key, hash, digest, made.Signature); err != nil {
			return err
		}
		for _, salt := range []int32{rsa.PSSSaltLengthEqualsHash, rsa.PSSSaltLengthAuto, int32(hash.Size())} {
			if made, err = keys.SignData(ctx, pss(public.Id, digest, hash, salt)); err != nil {
				return err
			}
			options := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}
			if err := rsa.VerifyPSS(key, hash, digest, made.Signature, options); err != nil {
				return err
			}
		}
		return nil
	default:
		return fmt.Errorf("a key of type %T", parsed)
	}
}

// refused makes calls that no key manager can fulfil.
func refused(ctx context.Context, keys keymanagerv1.KeyManagerClient, id string) {
	digest := make([]byte, 32)
	for name, bad := range map[string]*keymanagerv1.SignDataRequest{
		"short digest": request(id, digest[:20], crypto.SHA256),
		"sha3":         request(id, digest, crypto.SHA3_256),
		"no options":   {KeyId: id, Data: digest},
		"no hash":      request(id, digest, 0),
		"no id":        request("", digest, crypto.SHA256),
		"no such key":  request("nobody", digest, crypto.SHA256),
		"odd salt":     pss(id, digest, crypto.SHA256, 7),
	} {
		_, err := keys.SignData(ctx, bad)
		fmt.Println("refused", name+":", status.Code(err), status.Convert(err).Message())
	}
	_, err := keys.GenerateKey(ctx, &keymanagerv1.GenerateKeyRequest{KeyId: "x"})
	fmt.Println("refused no type:", status.Code(err), status.Convert(err).Message())
	found, err := keys.GetPublicKey(ctx, &keymanagerv1.GetPublicKeyRequest{KeyId: "nobody"})
	fmt.Println("nobody:", found.GetPublicKey() == nil, err)
	found, err = keys.GetPublicKey(ctx, &keymanagerv1.GetPublicKeyRequest{KeyId: id})
	fmt.Println("somebody:", found.GetPublicKey().GetId() == id, err)
}
