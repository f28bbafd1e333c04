package mailboxtest

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"posthorn/pkg/mailbox"
)

// POP3Options set a POP3 server up. The zero value is a server on a free port of 127.0.0.1 with TLS.
type POP3Options struct {
	// Addr to listen on, default 127.0.0.1:0.
	Addr string
	// Security, default TLS from the first byte. With StartTLS nobody signs in before it.
	Security mailbox.Security
	// Users and their passwords; default "user" with "secret".
	Users map[string]string
	// Without names what the server does not know: UIDL, TOP, CAPA.
	Without []string
	// Lock serves a maildrop to one session at a time.
	Lock bool
	// Fault, when it returns a Fault, is what happens instead of the answer to a command. The verb is in upper case; the
	// greeting's verb is "".
	Fault func(verb, argument string) *Fault
	// CA issues the certificate, default a new one; Certificate replaces the certificate.
	CA          *CA
	Certificate *tls.Certificate
}

// Fault is what goes wrong with one command: the first field that is set counts.
type Fault struct {
	Reply   string // sent as it is
	Hang    bool   // nothing is said any more
	Cut     bool   // the connection ends
	CutBody int    // it ends after so many bytes of the mail
}

// POP3 is a POP3 server in this process. What it holds is in memory.
type POP3 struct {
	options  POP3Options
	ca       *CA
	config   *tls.Config
	listener *listener
	logins   atomic.Int64
	closing  chan struct{}
	sessions sync.WaitGroup

	mu     sync.Mutex
	mails  map[string][]Mail
	locked map[string]bool
	next   int
}

// StartPOP3 starts a server. Close it.
func StartPOP3(options POP3Options) (*POP3, error) {
	if options.Users == nil {
		options.Users = map[string]string{"user": "secret"}
	}
	if options.Security == "" {
		options.Security = mailbox.ImplicitTLS
	}
	l, err := listen(options.Addr)
	if err != nil {
		return nil, err
	}
	ca, config, err := serverTLS(options.CA, options.Certificate, l.host())
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	s := &POP3{options: options, ca: ca, config: config, listener: l, closing: make(chan struct{}),
		mails: map[string][]Mail{}, locked: map[string]bool{}}
	l.serveEach(&s.sessions, s.serve)
	return s, nil
}

// Close ends the server and every connection.
func (s *POP3) Close() error {
	close(s.closing)
	err := s.listener.Close()
	s.sessions.Wait()
	return err
}

// Addr is host:port.
func (s *POP3) Addr() string { return s.listener.Addr().String() }

// Port is the port it listens on.
func (s *POP3) Port() int { return s.listener.port() }

// CA issued the server's certificate.
func (s *POP3) CA() *CA { return s.ca }

// Settings reach a user's account.
func (s *POP3) Settings(user string) mailbox.Settings {
	return settings(mailbox.POP3, s.listener, s.options.Security, s.ca, user, s.options.Users[user])
}

// BytesSent counts what was sent to all clients, with the overhead of TLS.
func (s *POP3) BytesSent() int64 { return s.listener.sent.Load() }

// Connections counts the connections that were made.
func (s *POP3) Connections() int { return int(s.listener.accepted.Load()) }

// Logins counts attempts to sign in.
func (s *POP3) Logins() int { return int(s.logins.Load()) }

// Deliver puts a mail into a user's maildrop and returns its UIDL. Sessions that are open do not see it.
func (s *POP3) Deliver(user string, raw []byte) string {
	s.mu.Lock()
	s.next++
	uidl := fmt.Sprintf("%08d.posthorn", s.next)
	s.mu.Unlock()
	s.DeliverAs(user, uidl, raw)
	return uidl
}

// DeliverAs is Deliver with a UIDL of the caller's, such as one that was used before.
func (s *POP3) DeliverAs(user, uidl string, raw []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mails[user] = append(s.mails[user], Mail{UIDL: uidl, Raw: raw})
}

// Remove takes a mail away, as another program might.
func (s *POP3) Remove(user, uidl string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mails[user] = slices.DeleteFunc(slices.Clone(s.mails[user]), func(m Mail) bool { return m.UIDL == uidl })
}

// Mails lists a user's maildrop.
func (s *POP3) Mails(user string) []Mail {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.mails[user])
}

// popConn is one client's session. Its mails are those of the moment it signed in.
type popConn struct {
	s       *POP3
	conn    net.Conn
	r       *bufio.Reader
	secure  bool
	user    string
	in      bool
	mails   []Mail
	deleted map[int]bool
}

var errEnd = errors.New("the session ends")

func (s *POP3) serve(conn net.Conn) {
	defer func() { _ = conn.Close() }() // the session is over
	c := &popConn{s: s, conn: conn, deleted: map[int]bool{}}
	if s.options.Security == mailbox.ImplicitTLS {
		if err := c.startTLS(); err != nil {
			return
		}
	}
	c.r = bufio.NewReader(c.conn)
	defer c.unlock()
	if err := c.answer("", "", func() error { return c.say("+OK Posthorn test server ready") }); err != nil {
		return
	}
	for {
		line, err := c.r.ReadString('\n')
		if err != nil {
			return
		}
		verb, argument, _ := strings.Cut(strings.TrimRight(line, "\r\n"), " ")
		verb = strings.ToUpper(verb)
		if err := c.answer(verb, argument, func() error { return c.command(verb, argument) }); err != nil {
			return
		}
	}
}

func (c *popConn) startTLS() error {
	conn := tls.Server(c.conn, c.s.config)
	if err := conn.HandshakeContext(context.Background()); err != nil {
		return err
	}
	c.conn, c.secure = conn, true
	return nil
}

// answer runs a command unless a fault is due.
func (c *popConn) answer(verb, argument string, run func() error) error {
	var fault *Fault
	if c.s.options.Fault != nil {
		fault = c.s.options.Fault(verb, argument)
	}
	switch {
	case fault == nil:
		return run()
	case fault.Reply != "":
		_, err := io.WriteString(c.conn, fault.Reply)
		return err
	case fault.Hang:
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			_, _ = io.Copy(io.Discard, c.r) // until the client is gone
		}()
		select {
		case <-c.s.closing:
		case <-gone:
		}
		return errEnd
	case fault.CutBody > 0:
		if m, _, ok := c.mail(argument); ok {
			_, err := c.conn.Write(append([]byte("+OK\r\n"), m.Raw[:min(fault.CutBody, len(m.Raw))]...))
			return errors.Join(err, errEnd)
		}
	}
	return errEnd
}

func (c *popConn) say(format string, args ...any) error {
	_, err := fmt.Fprintf(c.conn, format+"\r\n", args...)
	return err
}

func (c *popConn) command(verb, argument string) error {
	if slices.Contains(c.s.options.Without, verb) {
		return c.say("-ERR unknown command")
	}
	switch verb {
	case "CAPA":
		return c.capabilities()
	case "QUIT":
		return c.quit()
	case "NOOP":
		return c.say("+OK")
	}
	if !c.in {
		return c.authorization(verb, argument)
	}
	return c.transaction(verb, argument)
}

func (c *popConn) capabilities() error {
	lines := []string{"+OK", "PIPELINING", "RESP-CODES"}
	for _, name := range []string{"UIDL", "TOP"} {
		if !slices.Contains(c.s.options.Without, name) {
			lines = append(lines, name)
		}
	}
	if c.s.options.Security == mailbox.StartTLS && !c.secure {
		lines = append(lines, "STLS")
	} else {
		lines = append(lines, "USER")
	}
	return c.say("%s", strings.Join(append(lines, "."), "\r\n"))
}

func (c *popConn) authorization(verb, argument string) error {
	switch verb {
	case "STLS":
		if c.s.options.Security != mailbox.StartTLS || c.secure {
			return c.say("-ERR no TLS here")
		}
		if err := c.say("+OK begin TLS"); err != nil {
			return err
		}
		if err := c.startTLS(); err != nil {
			return err
		}
		c.r = bufio.NewReader(c.conn)
		return nil
	case "USER":
		if c.s.options.Security == mailbox.StartTLS && !c.secure {
			return c.say("-ERR TLS first")
		}
		c.user = argument
		return c.say("+OK")
	case "PASS":
		c.s.logins.Add(1)
		right, ok := c.s.options.Users[c.user]
		if !ok || right != argument {
			return c.say("-ERR [AUTH] Authentication failed.")
		}
		c.s.mu.Lock()
		locked := c.s.options.Lock && c.s.locked[c.user]
		if !locked {
			c.s.locked[c.user] = true
			c.in = true
			c.mails = slices.Clone(c.s.mails[c.user])
		}
		c.s.mu.Unlock()
		if locked {
			return c.say("-ERR [IN-USE] Do you have another POP session running?")
		}
		return c.say("+OK Logged in.")
	}
	return c.say("-ERR sign in first")
}

func (c *popConn) unlock() {
	if c.in {
		c.s.mu.Lock()
		c.s.locked[c.user] = false
		c.s.mu.Unlock()
		c.in = false
	}
}

// mail is the mail of a message number that is not marked as deleted.
func (c *popConn) mail(argument string) (Mail, int, bool) {
	first, _, _ := strings.Cut(argument, " ")
	n, err := strconv.Atoi(first)
	if err != nil || n < 1 || n > len(c.mails) || c.deleted[n] {
		return Mail{}, 0, false
	}
	return c.mails[n-1], n, true
}

func (c *popConn) transaction(verb, argument string) error {
	switch verb {
	case "STAT":
		count, size := 0, 0
		for i, m := range c.mails {
			if !c.deleted[i+1] {
				count++
				size += len(m.Raw)
			}
		}
		return c.say("+OK %d %d", count, size)
	case "LIST":
		return c.listing(argument, func(m Mail) string { return strconv.Itoa(len(m.Raw)) })
	case "UIDL":
		return c.listing(argument, func(m Mail) string { return m.UIDL })
	case "RSET":
		c.deleted = map[int]bool{}
		return c.say("+OK")
	case "RETR", "TOP", "DELE":
		m, n, ok := c.mail(argument)
		if !ok {
			return c.say("-ERR There's no message %s.", argument)
		}
		switch verb {
		case "DELE":
			c.deleted[n] = true
			return c.say("+OK Marked to be deleted.")
		case "TOP":
			return c.body(top(m.Raw, argument))
		default:
			return c.body(m.Raw)
		}
	}
	return c.say("-ERR unknown command")
}

func (c *popConn) listing(argument string, of func(Mail) string) error {
	if argument != "" {
		m, n, ok := c.mail(argument)
		if !ok {
			return c.say("-ERR There's no message %s.", argument)
		}
		return c.say("+OK %d %s", n, of(m))
	}
	var out strings.Builder
	out.WriteString("+OK\r\n")
	for i, m := range c.mails {
		if !c.deleted[i+1] {
			fmt.Fprintf(&out, "%d %s\r\n", i+1, of(m))
		}
	}
	out.WriteString(".\r\n")
	_, err := io.WriteString(c.conn, out.String())
	return err
}

// top is the header and as many lines of the body as were asked for (RFC 1939 section 7).
func top(raw []byte, argument string) []byte {
	_, count, _ := strings.Cut(argument, " ")
	lines, err := strconv.Atoi(strings.TrimSpace(count))
	header := bytes.Index(raw, []byte("\r\n\r\n"))
	if err != nil || header < 0 {
		return raw
	}
	end := header + 4
	for range lines {
		next := bytes.Index(raw[end:], []byte("\r\n"))
		if next < 0 {
			return raw
		}
		end += next + 2
	}
	return raw[:end]
}

// body sends a mail with dots stuffed at the beginning of lines, which only CRLF ends.
func (c *popConn) body(raw []byte) error {
	stuffed := bytes.ReplaceAll(raw, []byte("\r\n."), []byte("\r\n.."))
	if bytes.HasPrefix(stuffed, []byte(".")) {
		stuffed = append([]byte("."), stuffed...)
	}
	out := append([]byte("+OK message follows\r\n"), stuffed...)
	if len(raw) > 0 && !bytes.HasSuffix(raw, []byte("\r\n")) {
		out = append(out, "\r\n"...)
	}
	_, err := c.conn.Write(append(out, ".\r\n"...))
	return err
}

// quit carries the deletions out.
func (c *popConn) quit() error {
	if c.in {
		c.s.mu.Lock()
		for i, m := range c.mails {
			if !c.deleted[i+1] {
				continue
			}
			if at := slices.IndexFunc(c.s.mails[c.user], func(other Mail) bool {
				return other.UIDL == m.UIDL && bytes.Equal(other.Raw, m.Raw)
			}); at >= 0 {
				c.s.mails[c.user] = slices.Delete(slices.Clone(c.s.mails[c.user]), at, at+1)
			}
		}
		c.s.mu.Unlock()
	}
	c.unlock() // before the answer: the client may come back at once
	return errors.Join(c.say("+OK Logging out."), errEnd)
}
