// Package source is the external message source: what a person configures about one mail account, the rules for it,
// where it is stored, the YAML file it may come from, and the state it is in.
//
// Records lie in KV buckets ([Bucket]): `sources` holds one record per source under its id and `retry.<id>` beside it,
// `workflows` one record per workflow, `source-state` what each stage reports of a source under `<id>.<part>`. Changes
// are told to an [Announcer].
package source

import (
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/idna"

	"posthorn/pkg/contract"
	"posthorn/pkg/fault"
	"posthorn/pkg/mailbox"
	"posthorn/pkg/secret"
)

// ByFile is who manages or pauses a source on behalf of a sources file.
const ByFile = "file"

// AuthType is a way of signing in.
type AuthType string

// AuthPassword signs in with a password.
const AuthPassword AuthType = "password"

// authOAuth2 does not exist yet, and is refused with a sentence of its own: see policy.oauth_not_available.
const authOAuth2 AuthType = "oauth2"

// Auth is how a source signs in: its type, and what that type needs.
type Auth struct {
	Type AuthType `json:"type"`
	// Sealed is the password, sealed for the source's id and the field "password": see [SealPassword].
	Sealed secret.Sealed `json:"sealed,omitzero"`
}

// Evidence is what counts as proof that a mail answers something sent from the account.
type Evidence string

// EvidenceSent asks for the answered mail in the sent index; EvidenceHeader takes any In-Reply-To or References;
// EvidenceAuto is sent once a Sent mailbox with mail in it was read, else header.
const (
	EvidenceAuto   Evidence = "auto"
	EvidenceSent   Evidence = "sent"
	EvidenceHeader Evidence = "header"
)

// Values of [Source.ImportFrom] beside a date.
const (
	ImportAll = "all"
	ImportNow = "now"
)

// Source is one configured mail account. Start from [New], which fills the defaults. Its JSON is the stored record,
// with the sealed credential; what is shown to people and handed out by interfaces is [Source.Shown].
type Source struct {
	// ID is a token ([contract.ValidToken]) and never changes.
	ID              string           `json:"id"`
	Name            string           `json:"name"`
	Description     string           `json:"description,omitempty"`
	DefaultWorkflow string           `json:"default_workflow"`
	Type            mailbox.Protocol `json:"type"`
	// Address the account receives mail for.
	Address string `json:"address"`
	// Server is a host name or an IP address, without scheme and port.
	Server   string `json:"server"`
	Port     int    `json:"port"`
	Username string `json:"username"`
	Auth     Auth   `json:"auth"`
	// SSL means TLS from the first byte, on 143 and 110 STARTTLS or STLS without a fall-back; off is plain text.
	SSL bool `json:"ssl"`
	// AfterFetch is what happens to a mail once its event is stored.
	AfterFetch     contract.Disposition `json:"after_fetch"`
	RepliesOnly    bool                 `json:"replies_only"`
	ArchiveMailbox string               `json:"archive_mailbox"`
	MaxSize        Size                 `json:"max_size"`
	PollInterval   Duration             `json:"poll_interval"`
	// CA is the PEM of the private issuers to trust instead of the system's; empty is the system's.
	CA            string   `json:"ca,omitempty"`
	ReplyEvidence Evidence `json:"reply_evidence"`
	// ImportFrom is all, now, a date (2026-11-23, midnight UTC) or an RFC 3339 time.
	ImportFrom string `json:"import_from"`
	// Boundary is what ImportFrom came to when it was set: mail received earlier stays in the Inbox. Zero takes all.
	Boundary time.Time `json:"boundary,omitzero"`

	Paused   bool      `json:"paused"`
	PausedBy string    `json:"paused_by,omitempty"`
	PausedAt time.Time `json:"paused_at,omitzero"`
	// ResumedAt is when a pause ended last.
	ResumedAt time.Time `json:"resumed_at,omitzero"`

	// ManagedBy is [ByFile] for a source from a sources file: it is read-only elsewhere.
	ManagedBy string `json:"managed_by,omitempty"`
	// Epoch is the source's identity on its server: a new random token whenever type, server or username changes.
	Epoch     string    `json:"epoch"`
	CreatedAt time.Time `json:"created_at"`
	// Revision of the record this was read from; 0 when it was never stored.
	Revision uint64 `json:"-"`
}

// New is a source with the defaults of everything that has one.
func New() Source {
	return Source{
		Type:           mailbox.IMAP,
		Auth:           Auth{Type: AuthPassword},
		SSL:            true,
		AfterFetch:     contract.Archive,
		ArchiveMailbox: "Archive",
		MaxSize:        50 * MB,
		PollInterval:   Duration(time.Minute),
		ReplyEvidence:  EvidenceAuto,
		ImportFrom:     ImportAll,
	}
}

// Shown is the source without its credential.
func (s Source) Shown() Source {
	s.Auth.Sealed = secret.Sealed{}
	return s
}

// Ref names the source in events.
func (s Source) Ref() contract.SourceRef {
	return contract.SourceRef{ID: s.ID, Name: s.Name, Address: s.Address}
}

// Stamp is the source as it is now, for a mail that is being fetched. evidence is what counts as proof of a reply:
// header or sent, which auto comes to once the Sent mailbox was looked for.
func (s Source) Stamp(evidence string) contract.Stamp {
	return contract.Stamp{
		Source:      s.Ref(),
		Revision:    s.Revision,
		Epoch:       s.Epoch,
		Workflow:    s.DefaultWorkflow,
		RepliesOnly: s.RepliesOnly,
		Evidence:    evidence,
		Disposition: s.AfterFetch,
	}
}

// Orders tells whether a disposition needs the archiver to do something on this source's server: leave never does, and
// archive does nothing on POP3, which has no mailbox to move mail to.
func (s Source) Orders(disposition contract.Disposition) bool {
	return disposition == contract.Delete || disposition == contract.Archive && s.Type == mailbox.IMAP
}

// ImportFromNow tells whether the mail that was there at first contact is left alone as a whole.
func (s Source) ImportFromNow() bool { return s.ImportFrom == ImportNow }

// Security is how the connection is protected: 143 and 110 with SSL upgrade a plain connection, every other port with
// SSL speaks TLS from the first byte.
func (s Source) Security() mailbox.Security {
	switch {
	case !s.SSL:
		return mailbox.Plain
	case s.Port == 143 || s.Port == 110:
		return mailbox.StartTLS
	default:
		return mailbox.ImplicitTLS
	}
}

// Settings say how to reach the account, with its password. Network policy and time-outs are the caller's to add. A
// password that no key opens is auth.key_missing.
func (s Source) Settings(keys *secret.Keyring) (mailbox.Settings, error) {
	if s.Auth.Type != AuthPassword {
		return mailbox.Settings{}, fault.New(fault.PolicyOAuth, nil, nil)
	}
	password, err := keys.Open(s.Auth.Sealed, s.ID, fieldPassword)
	if err != nil {
		return mailbox.Settings{}, err
	}
	settings := mailbox.Settings{
		Protocol: s.Type,
		Host:     dialName(s.Server),
		Port:     s.Port,
		Security: s.Security(),
		Username: s.Username,
		Password: password.Reveal(),
		MaxBody:  int64(s.MaxSize),
	}
	if s.CA != "" {
		settings.RootCAs = x509.NewCertPool()
		if !settings.RootCAs.AppendCertsFromPEM([]byte(s.CA)) {
			return mailbox.Settings{}, fault.New(fault.PolicyNotValid, nil,
				fault.Params{"what": "the source " + s.ID, "problems": "ca_file holds no certificate"})
		}
	}
	return settings, nil
}

// SealPassword puts a password into the source, sealed for its id. The [Store] does so by itself; this is for a source
// that is tested before it is saved.
func (s *Source) SealPassword(keys *secret.Keyring, password secret.Secret) (err error) {
	s.Auth.Sealed, err = keys.Seal(password, s.ID, fieldPassword)
	return err
}

// StaleAfter is how long a source may go without a complete cycle before it is shown as stale: three poll intervals,
// but at least five minutes.
func (s Source) StaleAfter() time.Duration {
	return max(3*time.Duration(s.PollInterval), 5*time.Minute)
}

// dialName is the server's name as it is looked up: names outside ASCII in their punycode form (RFC 5891).
func dialName(server string) string {
	if ascii, err := idna.Lookup.ToASCII(server); err == nil && !isASCII(server) {
		return ascii
	}
	return server
}

func isASCII(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r > 0x7e })
}

// normal trims what people paste with blanks around it, and writes the server's name in lower case.
func (s Source) normal() Source {
	for _, field := range []*string{&s.Name, &s.Description, &s.Address, &s.Server, &s.Username, &s.ArchiveMailbox} {
		*field = strings.TrimSpace(*field)
	}
	s.Server = strings.ToLower(strings.TrimSuffix(s.Server, "."))
	if inner, ok := strings.CutPrefix(s.Server, "["); ok { // [::1] as it stands in a URL
		if inner, ok := strings.CutSuffix(inner, "]"); ok && net.ParseIP(inner) != nil {
			s.Server = inner
		}
	}
	return s
}

// parseImportFrom turns the field into the boundary it means at this moment.
func parseImportFrom(from string, now time.Time) (time.Time, error) {
	switch from {
	case ImportAll:
		return time.Time{}, nil
	case ImportNow:
		return now.UTC().Truncate(time.Second), nil // INTERNALDATE has no fractions
	}
	for _, layout := range []string{time.DateOnly, time.RFC3339} {
		if at, err := time.Parse(layout, from); err == nil {
			return at.UTC(), nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is no date", from)
}

const fieldPassword = "password"

// fields are what a person configures, by name, for telling what changed.
var fields = []struct {
	name string
	get  func(Source) any
}{
	{"name", func(s Source) any { return s.Name }},
	{"description", func(s Source) any { return s.Description }},
	{"default_workflow", func(s Source) any { return s.DefaultWorkflow }},
	{"type", func(s Source) any { return s.Type }},
	{"address", func(s Source) any { return s.Address }},
	{"server", func(s Source) any { return s.Server }},
	{"port", func(s Source) any { return s.Port }},
	{"username", func(s Source) any { return s.Username }},
	{"auth", func(s Source) any { return s.Auth.Type }},
	{"ssl", func(s Source) any { return s.SSL }},
	{"after_fetch", func(s Source) any { return s.AfterFetch }},
	{"replies_only", func(s Source) any { return s.RepliesOnly }},
	{"archive_mailbox", func(s Source) any { return s.ArchiveMailbox }},
	{"max_size", func(s Source) any { return s.MaxSize }},
	{"poll_interval", func(s Source) any { return s.PollInterval }},
	{"ca", func(s Source) any { return s.CA }},
	{"reply_evidence", func(s Source) any { return s.ReplyEvidence }},
	{"import_from", func(s Source) any { return s.ImportFrom }},
	{"paused", func(s Source) any { return s.Paused }},
	{"managed_by", func(s Source) any { return s.ManagedBy }},
}

// changed names the fields in which two sources differ; the password is not among them.
func changed(a, b Source) []string {
	var names []string
	for _, field := range fields {
		if field.get(a) != field.get(b) {
			names = append(names, field.name)
		}
	}
	return names
}

// newEpoch is a random token.
func newEpoch() string { return strings.ToLower(rand.Text()[:16]) }

// otherAccount tells whether two settings mean different accounts, so that places in one mean nothing in the other.
func otherAccount(a, b Source) bool {
	return a.Type != b.Type || a.Server != b.Server || a.Username != b.Username
}

// asksPassword tells whether the password must be typed again: it is never sent to a server, or for a user, that it
// was not typed for.
func asksPassword(before, after Source) bool {
	return before.Server != after.Server || before.Username != after.Username
}

// sorted orders sources by id.
func sorted(sources []Source) []Source {
	slices.SortFunc(sources, func(a, b Source) int { return strings.Compare(a.ID, b.ID) })
	return sources
}
