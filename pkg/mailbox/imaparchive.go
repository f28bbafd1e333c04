package mailbox

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/emersion/go-imap/v2"

	"posthorn/pkg/fault"
)

// defaultArchive is the name that also finds a mailbox marked \Archive (RFC 6154) under another name.
const defaultArchive = "Archive"

// list lists mailboxes by one pattern. Names that could break the answer have been taken out below.
func (s *imapSession) list(ctx context.Context, pattern string) ([]*imap.ListData, error) {
	var options *imap.ListOptions
	if s.caps["SPECIAL-USE"] && s.caps["LIST-EXTENDED"] {
		options = &imap.ListOptions{ReturnSpecialUse: true}
	}
	var mailboxes []*imap.ListData
	collect := func() (err error) {
		mailboxes, err = s.client.List("", pattern, options).Collect()
		return err
	}
	err := s.command(ctx, "listing mailboxes", 4*budgetControl, collect)
	if err != nil && options != nil && !s.dead() {
		options = nil
		err = s.command(ctx, "listing mailboxes", 4*budgetControl, collect)
	}
	return mailboxes, err
}

func selectable(m *imap.ListData) bool {
	return !slices.Contains(m.Attrs, imap.MailboxAttrNoSelect) && !slices.Contains(m.Attrs, imap.MailboxAttrNonExistent)
}

// prefix of the personal namespace (RFC 2342), "INBOX." on servers in the manner of Courier; "" when there is none or
// the server does not say.
func (s *imapSession) prefix(ctx context.Context) (string, error) {
	if !s.caps["NAMESPACE"] {
		return "", nil
	}
	var data *imap.NamespaceData
	err := s.command(ctx, "NAMESPACE", budgetControl, func() (err error) {
		data, err = s.client.Namespace().Wait()
		return err
	})
	if err != nil && s.dead() {
		return "", err
	}
	if err != nil || len(data.Personal) == 0 {
		return "", nil
	}
	return data.Personal[0].Prefix, nil
}

// archiveMailbox finds the archive mailbox: the configured name as it is, then below the namespace's prefix, then, for
// the default name, what the server marks \Archive. It is made when mayCreate; else "" says that it does not exist.
func (s *imapSession) archiveMailbox(ctx context.Context, name string, mayCreate bool) (string, error) {
	if known, ok := s.archive[name]; ok {
		return known, nil
	}
	if strings.EqualFold(name, "INBOX") || name == "" {
		return "", fault.New(fault.ArchiveRefused, nil, params(s.settings, "mailbox", name))
	}
	prefix, err := s.prefix(ctx)
	if err != nil {
		return "", err
	}
	candidates := []string{name}
	if prefix != "" && !strings.HasPrefix(name, prefix) {
		candidates = append(candidates, prefix+name)
	}
	for _, candidate := range candidates {
		found, err := s.exists(ctx, candidate)
		if err != nil {
			return "", err
		}
		if found {
			s.archive[name] = candidate
			return candidate, nil
		}
	}
	if name == defaultArchive {
		mailboxes, err := s.list(ctx, "*")
		if err != nil && s.dead() {
			return "", err
		}
		for _, m := range mailboxes {
			if slices.Contains(m.Attrs, imap.MailboxAttrArchive) && selectable(m) {
				s.archive[name] = m.Mailbox
				return m.Mailbox, nil
			}
		}
	}
	if !mayCreate {
		return "", nil
	}
	var refusal error
	for _, candidate := range slices.Backward(candidates) {
		err := s.create(ctx, candidate)
		if err == nil {
			s.archive[name] = candidate
			return candidate, nil
		}
		if s.dead() {
			return "", err
		}
		if refusal == nil {
			refusal = err
		}
	}
	return "", refusal
}

// exists tells whether a mailbox can be selected. A name with a wildcard is not looked up: CREATE will tell.
func (s *imapSession) exists(ctx context.Context, name string) (bool, error) {
	if strings.ContainsAny(name, "*%") {
		return false, nil
	}
	mailboxes, err := s.list(ctx, name)
	if err != nil && s.dead() {
		return false, err
	}
	return slices.ContainsFunc(mailboxes, func(m *imap.ListData) bool { return m.Mailbox == name && selectable(m) }), nil
}

// create makes a mailbox and subscribes to it, so that people see it.
func (s *imapSession) create(ctx context.Context, name string) error {
	err := s.command(ctx, "creating the archive mailbox", budgetControl, func() error {
		return s.client.Create(name, nil).Wait()
	})
	r, isRefusal := errors.AsType[refusal](err)
	switch {
	case err != nil && !isRefusal:
		return err
	case isRefusal && r.code != "ALREADYEXISTS":
		return fault.New(fault.ArchiveCreate, r, params(s.settings, "mailbox", name, "words", r.words))
	case isRefusal:
		return nil
	}
	err = s.command(ctx, "subscribing", budgetControl, func() error { return s.client.Subscribe(name).Wait() })
	if err != nil && s.dead() {
		return err
	}
	return nil // a mailbox nobody is subscribed to serves as well
}
