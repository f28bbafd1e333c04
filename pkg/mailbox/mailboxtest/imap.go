package mailboxtest

import (
	"bytes"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapserver"

	"posthorn/pkg/mailbox"
)

// IMAPOptions set an IMAP server up. The zero value is a modern server on a free port of 127.0.0.1 with TLS.
type IMAPOptions struct {
	// Addr to listen on, default 127.0.0.1:0.
	Addr string
	// Security, default TLS from the first byte. With StartTLS nobody signs in before it.
	Security mailbox.Security
	// Users and their passwords; default "user" with "secret".
	Users map[string]string
	// Without names capabilities to leave out: MOVE, UIDPLUS, ESEARCH, NAMESPACE, SPECIAL-USE; and IDLE, though not with
	// StartTLS.
	Without []string
	// Mailboxes that exist beside the Inbox, with a special use such as `\Sent` or none. nil is Sent, Drafts and Trash.
	Mailboxes map[string]string
	// Prefix of the personal namespace, such as "INBOX.", below which alone mailboxes can be made.
	Prefix string
	// ReadOnly denies \Deleted in the Inbox.
	ReadOnly bool
	// Refuse may refuse MOVE, COPY, CREATE, STORE or EXPUNGE by returning an error, see [No]. mails are the raw mails
	// concerned.
	Refuse func(verb, mailbox string, mails [][]byte) error
	// CA issues the certificate, default a new one; Certificate replaces the certificate.
	CA          *CA
	Certificate *tls.Certificate
}

// IMAP is an IMAP server in this process, for any number of clients at a time. What it holds is in memory.
type IMAP struct {
	options  IMAPOptions
	ca       *CA
	listener *listener
	server   *imapserver.Server
	served   chan struct{}
	logins   atomic.Int64
	delim    rune

	mu       sync.Mutex
	accounts map[string]map[string]*box
	validity uint32
}

// StartIMAP starts a server. Close it.
func StartIMAP(options IMAPOptions) (*IMAP, error) {
	if options.Users == nil {
		options.Users = map[string]string{"user": "secret"}
	}
	if options.Mailboxes == nil {
		options.Mailboxes = map[string]string{
			options.Prefix + "Sent": `\Sent`, options.Prefix + "Drafts": `\Drafts`, options.Prefix + "Trash": `\Trash`}
	}
	if options.Security == "" {
		options.Security = mailbox.ImplicitTLS
	}
	l, err := listen(options.Addr)
	if err != nil {
		return nil, err
	}
	s := &IMAP{options: options, listener: l, served: make(chan struct{}), delim: '/',
		accounts: map[string]map[string]*box{}, validity: 1000}
	if strings.HasSuffix(options.Prefix, ".") {
		s.delim = '.'
	}
	for user := range options.Users {
		boxes := map[string]*box{"INBOX": s.newBox("INBOX", "")}
		for name, use := range options.Mailboxes {
			boxes[name] = s.newBox(name, imap.MailboxAttr(use))
		}
		s.accounts[user] = boxes
	}
	ca, config, err := serverTLS(options.CA, options.Certificate, l.host())
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	s.ca = ca
	server := imapserver.Options{
		NewSession: func(*imapserver.Conn) (imapserver.Session, *imapserver.GreetingData, error) {
			return &imapConn{s: s}, nil, nil
		},
		Caps:         s.caps(),
		InsecureAuth: options.Security != mailbox.StartTLS,
		Logger:       log.New(io.Discard, "", 0),
	}
	var served net.Listener = l
	switch options.Security {
	case mailbox.StartTLS:
		server.TLSConfig = config
	case mailbox.ImplicitTLS:
		served = tls.NewListener(l, config)
	}
	if slices.Contains(options.Without, "IDLE") {
		served = withoutIdle{served}
	}
	s.server = imapserver.New(&server)
	go func() {
		defer close(s.served)
		_ = s.server.Serve(served) // ends when the listener closes
	}()
	return s, nil
}

func (s *IMAP) caps() imap.CapSet {
	caps := imap.CapSet{}
	for _, name := range []imap.Cap{imap.CapIMAP4rev1, imap.CapMove, imap.CapUIDPlus, imap.CapESearch, imap.CapNamespace,
		imap.CapSpecialUse, imap.CapListExtended, imap.CapListStatus, imap.CapChildren} {
		if !slices.Contains(s.options.Without, string(name)) {
			caps[name] = struct{}{}
		}
	}
	return caps
}

// withoutIdle takes IDLE out of the capabilities that imapserver always offers.
type withoutIdle struct{ net.Listener }

func (l withoutIdle) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return idleless{conn}, nil
}

type idleless struct{ net.Conn }

func (c idleless) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte("CAPABILITY")) {
		if _, err := c.Conn.Write(bytes.ReplaceAll(p, []byte(" IDLE"), nil)); err != nil {
			return 0, err
		}
		return len(p), nil
	}
	return c.Conn.Write(p)
}

// Close ends the server and every connection.
func (s *IMAP) Close() error {
	err := errors.Join(s.listener.Close(), s.server.Close())
	<-s.served
	return err
}

// Addr is host:port.
func (s *IMAP) Addr() string { return s.listener.Addr().String() }

// Port is the port it listens on.
func (s *IMAP) Port() int { return s.listener.port() }

// CA issued the server's certificate.
func (s *IMAP) CA() *CA { return s.ca }

// Settings reach a user's account.
func (s *IMAP) Settings(user string) mailbox.Settings {
	return settings(mailbox.IMAP, s.listener, s.options.Security, s.ca, user, s.options.Users[user])
}

// BytesSent counts what was sent to all clients, with the overhead of TLS.
func (s *IMAP) BytesSent() int64 { return s.listener.sent.Load() }

// Connections counts the connections that were made.
func (s *IMAP) Connections() int { return int(s.listener.accepted.Load()) }

// Logins counts attempts to sign in.
func (s *IMAP) Logins() int { return int(s.logins.Load()) }

// Deliver puts a mail into a mailbox, which is made when it is missing, and returns its UID. Clients in IDLE are told.
func (s *IMAP) Deliver(user, name string, raw []byte, flags ...string) uint32 {
	return s.DeliverAt(user, name, raw, time.Now(), flags...)
}

// DeliverAt is Deliver with a date of receipt.
func (s *IMAP) DeliverAt(user, name string, raw []byte, at time.Time, flags ...string) uint32 {
	b, _ := s.box(user, name, true)
	var imapFlags []imap.Flag
	for _, flag := range flags {
		imapFlags = append(imapFlags, imap.Flag(flag))
	}
	return uint32(b.append(raw, at, imapFlags))
}

// Mails lists a mailbox; nil when there is no such mailbox.
func (s *IMAP) Mails(user, name string) []Mail {
	b, ok := s.box(user, name, false)
	if !ok {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	mails := make([]Mail, len(b.mails))
	for i, m := range b.mails {
		mails[i] = Mail{UID: uint32(m.uid), Raw: m.raw}
		for _, flag := range m.flagList() {
			mails[i].Flags = append(mails[i].Flags, string(flag))
		}
	}
	return mails
}

// MailboxNames lists a user's mailboxes.
func (s *IMAP) MailboxNames(user string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for name := range s.accounts[user] {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Renumber gives a mailbox another UIDVALIDITY and its mails new UIDs, as after a restore. Connected clients see the
// mailbox as it was.
func (s *IMAP) Renumber(user, name string) {
	old, ok := s.box(user, name, false)
	if !ok {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.newBox(name, old.use)
	old.mu.Lock()
	defer old.mu.Unlock()
	for _, m := range old.mails {
		b.append(m.raw, m.at, m.flagList())
	}
	s.accounts[user][name] = b
}

// Replace puts other bytes at a UID, which no server may do.
func (s *IMAP) Replace(user, name string, uid uint32, raw []byte) {
	b, ok := s.box(user, name, false)
	if !ok {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, m := range b.mails {
		if uint32(m.uid) == uid {
			replaced := *m
			replaced.raw = raw
			b.mails[i] = &replaced
		}
	}
}

// newBox needs s.mu, except before anybody else knows s.
func (s *IMAP) newBox(name string, use imap.MailboxAttr) *box {
	s.validity++
	return &box{name: name, use: use, validity: s.validity, next: 1, tracker: imapserver.NewMailboxTracker(0)}
}

func (s *IMAP) box(user, name string, create bool) (*box, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if strings.EqualFold(name, "INBOX") {
		name = "INBOX"
	}
	b, ok := s.accounts[user][name]
	if !ok && create && s.accounts[user] != nil {
		b, ok = s.newBox(name, ""), true
		s.accounts[user][name] = b
	}
	return b, ok
}

func (s *IMAP) refuse(verb, name string, mails [][]byte) error {
	if s.options.Refuse == nil {
		return nil
	}
	return s.options.Refuse(verb, name, mails)
}

func (s *IMAP) login(user, password string) bool {
	s.logins.Add(1)
	right, ok := s.options.Users[user]
	return ok && subtle.ConstantTimeCompare([]byte(right), []byte(password)) == 1
}

// No is the refusal of a command, with a response code such as NOPERM or none.
func No(code, words string) error {
	return &imap.Error{Type: imap.StatusResponseTypeNo, Code: imap.ResponseCode(code), Text: words}
}
