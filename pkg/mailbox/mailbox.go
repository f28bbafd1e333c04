// Package mailbox is one face over IMAP (RFC 9051, RFC 3501) and POP3 (RFC 1939): list what lies in the Inbox, read it
// without leaving a trace, wait for more, and, on order, move or delete single mails by identity.
//
// Every byte passes our own guard connection, so that a call ends when its context ends, when the peer falls silent and
// when the peer sends more than any honest answer has. Errors are [fault.Error]s with a code and a text for people.
//
// A [Session] is used by one goroutine at a time. A POP3 maildrop serves one session at a time: whoever opens one holds
// the source's maildrop lock.
package mailbox

import (
	"context"
	"crypto/x509"
	"io"
	"time"

	"posthorn/pkg/contract"
)

// Protocol of a source.
type Protocol string

// The protocols.
const (
	IMAP Protocol = "imap"
	POP3 Protocol = "pop3"
)

// Security of a connection.
type Security string

// ImplicitTLS speaks TLS from the first byte; StartTLS requires STARTTLS or STLS and never falls back; Plain is only
// used where a source says so.
const (
	ImplicitTLS Security = "tls"
	StartTLS    Security = "starttls"
	Plain       Security = "plain"
)

// Settings say how to reach one account. The zero value of an optional field is its default.
type Settings struct {
	Protocol Protocol
	Host     string
	Port     int
	Security Security // ImplicitTLS when it is empty
	Username string
	Password string

	// RootCAs verify the server's certificate; nil is the system's. Certificates are always verified.
	RootCAs *x509.CertPool
	// Network rules which addresses may be dialled.
	Network NetworkPolicy
	// Timeout is how long to wait for the next bytes of an answer (and for connecting); default 20 s.
	Timeout time.Duration
	// MaxBody is the most bytes one body may have, 0 is no limit of its own; larger mails end in mail.too_large.
	MaxBody int64
	// Trace, when set, is told every protocol line with secrets cut and bodies left out; direction is "C" or "S". Calls
	// do not overlap.
	Trace func(direction, line string)
}

// NetworkPolicy rules which addresses a source's server may have.
type NetworkPolicy string

// PrivateOK allows public, private and loopback addresses; PublicOnly only public ones. Link-local and metadata
// addresses are never dialled.
const (
	PrivateOK  NetworkPolicy = "private-ok"
	PublicOnly NetworkPolicy = "public-only"
)

// Mode is what a session is opened for.
type Mode int

// Read opens the Inbox with EXAMINE (IMAP), so that nothing can be marked; Write opens it for moving and deleting.
const (
	Read Mode = iota
	Write
)

// Entry is one mail of the Inbox as a listing shows it.
type Entry struct {
	// UID is set on IMAP, UIDL on POP3 (empty when the server has none, or gave the same one to two mails).
	UID  uint32
	UIDL string
	// Number is the POP3 message number, valid within the session only.
	Number int
	// Size in octets; known from the listing on POP3, from [Session.Describe] on IMAP.
	Size int64
	// Deleted: flagged \Deleted and waiting to be expunged by whoever flagged it (IMAP).
	Deleted bool
}

// Info is what is known of a mail before its body is fetched.
type Info struct {
	Entry
	// InternalDate is when the server received the mail (IMAP); zero on POP3.
	InternalDate time.Time
}

// Status describes the open Inbox.
type Status struct {
	UIDValidity uint32 // IMAP; 0 when the server gives none
	UIDNext     uint32 // IMAP; 0 when the server gives none
	Messages    int
	ReadOnly    bool // no right to flag \Deleted (IMAP: PERMANENTFLAGS without it, opened with Write)
	HasUIDL     bool // POP3
	CanIdle     bool // IMAP with IDLE
	// CertUntil is when the server's certificate ends; zero on an unencrypted connection.
	CertUntil time.Time
}

// Target is one mail to be moved or deleted. It is touched only when what lies at its place is this mail.
type Target struct {
	Place     contract.Place
	SHA256    string // of the raw mail, 64 hexadecimal digits
	MessageID string // with its angle brackets; helps to find an earlier copy in the archive mailbox
}

// Result is what came of one [Target].
type Result struct {
	Target Target
	// Outcome is one of the contract.Outcome constants; empty when Err is set.
	Outcome string
	// Mailbox is where the mail is now, when it was moved.
	Mailbox string
	// Err is why this mail could not be moved or deleted; it is still where it was. Try again later.
	Err error
}

// SentMail is what the sent index keeps of one mail in the Sent mailbox.
type SentMail struct {
	UID    uint32
	Header []byte // the header fields asked for, as sent
}

// SentCursor is how far the Sent mailbox was read.
type SentCursor struct {
	Mailbox     string `json:"mailbox"`
	UIDValidity uint32 `json:"uid_validity"`
	// Last is the highest UID read.
	Last uint32 `json:"last"`
}

// Session is one signed-in session with the Inbox open. After an error whose code has class dns, tcp, tls, auth,
// limit or protocol the session is dead; Close it and open another.
type Session interface {
	// Status of the Inbox when it was opened, refreshed by List.
	Status() Status
	// List returns every mail in the Inbox, ascending. On POP3 a session sees the mails that were there when it opened.
	List(ctx context.Context) ([]Entry, error)
	// Describe returns sizes and dates of the listed mails; mails that have vanished are left out.
	Describe(ctx context.Context, mails []Entry) ([]Info, error)
	// Headers calls each with the header block of every mail that is still there, without marking it.
	Headers(ctx context.Context, mails []Entry, each func(Entry, []byte) error) error
	// Fetch calls each with every mail that is still there, without marking it. The body must be read to its end before
	// each returns; it ends in io.EOF only if every announced byte came. size is the announced size of the body
	// (IMAP: of the literal), -1 if unknown. An empty body is protocol.empty_body: it is passed to each as the error of
	// the first Read, so that one bad mail does not stop the others.
	Fetch(ctx context.Context, mails []Entry, each func(mail Entry, size int64, body io.Reader) error) error
	// Wait returns when the Inbox may have changed or after at most d (IDLE, RFC 2177, in rounds short enough to notice
	// a dead peer). Without IDLE and on POP3 it waits for d. It returns nil in both cases.
	Wait(ctx context.Context, d time.Duration) error
	// Dispose moves the targets to the archive mailbox (archive) or deletes them (delete): one result for each target.
	// archive is the configured name of the archive mailbox, used by archive only. On POP3, delete takes effect when
	// this call returns, as it ends the session with QUIT; archive is refused. The error is for the session as a whole:
	// targets without a result are unknown and must be tried again.
	Dispose(ctx context.Context, what contract.Disposition, archive string, targets []Target) ([]Result, error)
	// Sent reads the header fields that the sent index needs of every mail in the Sent mailbox after the cursor and
	// calls each, then returns the new cursor. POP3 has none: mailbox.no_sent.
	Sent(ctx context.Context, from SentCursor, each func(SentMail) error) (SentCursor, error)
	// Close ends the session; on POP3 without deleting anything.
	Close() error
}
