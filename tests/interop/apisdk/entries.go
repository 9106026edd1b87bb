package main

import (
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

func id(path string) *types.SPIFFEID { return &types.SPIFFEID{TrustDomain: trustDomain, Path: path} }

func entry(name, parent string, selectors ...string) *types.Entry {
	made := &types.Entry{Id: name, SpiffeId: id("/" + name), ParentId: id(parent)}
	for _, value := range selectors {
		made.Selectors = append(made.Selectors, &types.Selector{Type: "unix", Value: value})
	}
	return made
}

func (c *client) entries() {
	api := entryv1.NewEntryClient(c.admin)
	one := entry("one", "/host", "uid:1", "gid:1")
	one.Hint, one.Admin, one.DnsNames, one.X509SvidTtl = "external", true, []string{"one.example", "uno.example"}, 77
	created, err := api.BatchCreateEntry(c.ctx, &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{
		one,
		entry("two", "/host", "uid:1"),
		entry("two", "/host", "uid:1"),
		entry("bad", "/host"),
		{Id: "foreign", SpiffeId: &types.SPIFFEID{TrustDomain: "other.org", Path: "/x"}, ParentId: id("/host")},
	}})
	need("entry create", err)
	for _, result := range created.Results {
		say("entry create", nil, result.Status.Code, result.Status.Message, result.Entry.GetId())
	}
	got, err := api.GetEntry(c.ctx, &entryv1.GetEntryRequest{Id: "one"})
	need("entry get", err)
	say("entry get", nil, got.Hint, got.Admin, got.DnsNames, got.X509SvidTtl, len(got.Selectors), got.RevisionNumber)
	masked, err := api.GetEntry(c.ctx, &entryv1.GetEntryRequest{Id: "one", OutputMask: &types.EntryMask{Hint: true}})
	say("entry get masked", err, masked.GetId(), masked.GetHint(), masked.GetAdmin(), masked.GetSpiffeId() == nil)
	_, err = api.GetEntry(c.ctx, &entryv1.GetEntryRequest{Id: "none"})
	say("entry get none", err)

	bySelectors := func(match types.SelectorMatch_MatchBehavior) *entryv1.ListEntriesRequest_Filter {
		return &entryv1.ListEntriesRequest_Filter{BySelectors: &types.SelectorMatch{
			Match: match, Selectors: []*types.Selector{{Type: "unix", Value: "uid:1"}},
		}}
	}
	for _, match := range []types.SelectorMatch_MatchBehavior{
		types.SelectorMatch_MATCH_EXACT, types.SelectorMatch_MATCH_SUBSET,
		types.SelectorMatch_MATCH_SUPERSET, types.SelectorMatch_MATCH_ANY,
	} {
		listed, err := api.ListEntries(c.ctx, &entryv1.ListEntriesRequest{Filter: bySelectors(match)})
		say("entry list "+match.String(), err, names(listed.GetEntries()))
	}
	page, err := api.ListEntries(c.ctx, &entryv1.ListEntriesRequest{PageSize: 1})
	need("entry page", err)
	next, err := api.ListEntries(c.ctx, &entryv1.ListEntriesRequest{PageSize: 1, PageToken: page.NextPageToken})
	say("entry pages", err, names(page.Entries), names(next.GetEntries()), page.NextPageToken != "")
	count, err := api.CountEntries(c.ctx, &entryv1.CountEntriesRequest{
		Filter: &entryv1.CountEntriesRequest_Filter{ByHint: wrapperspb.String("external")},
	})
	say("entry count", err, count.GetCount())

	updated, err := api.BatchUpdateEntry(c.ctx, &entryv1.BatchUpdateEntryRequest{
		Entries:    []*types.Entry{{Id: "one", Hint: "internal", Admin: false}, {Id: "none"}},
		InputMask:  &types.EntryMask{Hint: true},
		OutputMask: &types.EntryMask{Hint: true, Admin: true, RevisionNumber: true},
	})
	need("entry update", err)
	for _, result := range updated.Results {
		say("entry update", nil, result.Status.Code, result.Entry.GetHint(), result.Entry.GetAdmin(), result.Entry.GetRevisionNumber())
	}
	deleted, err := api.BatchDeleteEntry(c.ctx, &entryv1.BatchDeleteEntryRequest{Ids: []string{"two", "none", ""}})
	need("entry delete", err)
	for _, result := range deleted.Results {
		say("entry delete", nil, result.Id, result.Status.Code, result.Status.Message)
	}
}

func names(entries []*types.Entry) []string {
	var found []string
	for _, each := range entries {
		found = append(found, each.Id)
	}
	return found
}
