package main

import (
	"context"
	"os"

	"github.com/spiffe/spire-plugin-sdk/pluginsdk/support/bundleformat"
	bundlepublisherv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/bundlepublisher/v1"
	notifierv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/notifier/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// bundlePublisher writes each bundle in each of the SDK's formats, into the folder that is its whole configuration.
type bundlePublisher struct {
	bundlepublisherv1.UnimplementedBundlePublisherServer
	configured
}

func (p *bundlePublisher) PublishBundle(_ context.Context, req *bundlepublisherv1.PublishBundleRequest) (*bundlepublisherv1.PublishBundleResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	formatter := bundleformat.NewFormatter(req.Bundle)
	for name, format := range map[string]bundleformat.Format{
		"spiffe": bundleformat.SPIFFE, "jwks": bundleformat.JWKS, "pem": bundleformat.PEM,
	} {
		content, err := formatter.Format(format)
		if err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "no bundle: %v", err)
		}
		if err := os.WriteFile(p.text+"/"+name, content, 0o600); err != nil {
			return nil, status.Errorf(codes.Internal, "not written: %v", err)
		}
	}
	return &bundlepublisherv1.PublishBundleResponse{}, nil
}

type notifier struct {
	notifierv1.UnimplementedNotifierServer
	configured
}

func (p *notifier) Notify(_ context.Context, req *notifierv1.NotifyRequest) (*notifierv1.NotifyResponse, error) {
	bundle := req.GetBundleUpdated().GetBundle()
	p.log.Info("Updated", "trust_domain", bundle.GetTrustDomain(), "sequence_number", bundle.GetSequenceNumber())
	return &notifierv1.NotifyResponse{}, nil
}

func (p *notifier) NotifyAndAdvise(_ context.Context, req *notifierv1.NotifyAndAdviseRequest) (*notifierv1.NotifyAndAdviseResponse, error) {
	if len(req.GetBundleLoaded().GetBundle().GetX509Authorities()) == 0 {
		return nil, status.Error(codes.FailedPrecondition, "a bundle without roots is no beginning")
	}
	return &notifierv1.NotifyAndAdviseResponse{}, nil
}
