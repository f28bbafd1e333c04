package mailboxtest

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"strings"
	"sync"
	"time"
)

// Script is a server that says what it is told to, and so may break every rule.
type Script struct {
	// Addr to listen on, default 127.0.0.1:0.
	Addr string
	// Greeting is sent first, unless it is empty. "\r\n" must be in it.
	Greeting string
	// Answers are tried in order for every line that is received; the first whose Verb the line contains is given, once
	// or for as long as it has no Times. A line that none fits is answered "tag OK" on IMAP; see Otherwise.
	Answers []Answer
	// Otherwise answers lines that no Answer fits; {tag} is the line's first word. Default "{tag} OK\r\n".
	Otherwise string
	// TLS, when set, is spoken from the first byte.
	TLS *tls.Config
}

// Answer is one line's answer.
type Answer struct {
	Verb  string // part of the line, in upper case, such as "UID FETCH" or "LOGIN"
	Say   string // {tag} is the line's first word
	Times int    // how often it is given, 0 is always
	Hang  bool   // afterwards nothing is said any more
	Cut   bool   // afterwards the connection ends
	// Flood is how many bytes of 'x' follow what is said.
	Flood int64
	// StartTLS goes on with TLS afterwards.
	StartTLS *tls.Config
	// Do is called first.
	Do func()
}

// Scripted is a running Script.
type Scripted struct {
	script   Script
	listener *listener
	sessions sync.WaitGroup
	closing  chan struct{}

	mu       sync.Mutex
	given    map[int]int
	received []string
}

// StartScript starts a scripted server. Close it.
func StartScript(script Script) (*Scripted, error) {
	if script.Otherwise == "" {
		script.Otherwise = "{tag} OK\r\n"
	}
	l, err := listen(script.Addr)
	if err != nil {
		return nil, err
	}
	s := &Scripted{script: script, listener: l, closing: make(chan struct{}), given: map[int]int{}}
	l.serveEach(&s.sessions, s.serve)
	return s, nil
}

// Close ends the server and every connection.
func (s *Scripted) Close() error {
	close(s.closing)
	err := s.listener.Close()
	s.sessions.Wait()
	return err
}

// Addr is host:port.
func (s *Scripted) Addr() string { return s.listener.Addr().String() }

// Port is the port it listens on.
func (s *Scripted) Port() int { return s.listener.port() }

// Connections counts the connections that were made.
func (s *Scripted) Connections() int { return int(s.listener.accepted.Load()) }

// Received are the lines of all clients.
func (s *Scripted) Received() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.received...)
}

func (s *Scripted) serve(conn net.Conn) {
	defer func() { _ = conn.Close() }() // the session is over
	if s.script.TLS != nil {
		secured := tls.Server(conn, s.script.TLS)
		if err := secured.HandshakeContext(context.Background()); err != nil {
			return
		}
		conn = secured
	}
	r := bufio.NewReader(conn)
	if _, err := io.WriteString(conn, s.script.Greeting); err != nil {
		return
	}
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimRight(line, "\r\n")
		answer := s.choose(line)
		if answer.Do != nil {
			answer.Do()
		}
		tag, _, _ := strings.Cut(line, " ")
		if _, err := io.WriteString(conn, strings.ReplaceAll(answer.Say, "{tag}", tag)); err != nil {
			return
		}
		if flood(conn, answer.Flood) != nil || answer.Cut {
			return
		}
		if answer.Hang {
			s.hang(conn)
			return
		}
		if answer.StartTLS != nil {
			secured := tls.Server(conn, answer.StartTLS)
			if err := secured.HandshakeContext(context.Background()); err != nil {
				return
			}
			conn = secured
			r = bufio.NewReader(conn)
		}
	}
}

func (s *Scripted) choose(line string) Answer {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.received = append(s.received, line)
	for i, a := range s.script.Answers {
		if strings.Contains(strings.ToUpper(line), a.Verb) && (a.Times == 0 || s.given[i] < a.Times) {
			s.given[i]++
			return a
		}
	}
	return Answer{Say: s.script.Otherwise}
}

func (s *Scripted) hang(conn net.Conn) {
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = io.Copy(io.Discard, conn) // until the client is gone
	}()
	select {
	case <-s.closing:
		_ = conn.SetReadDeadline(time.Unix(1, 0)) // ends the copy
		<-gone
	case <-gone:
	}
}

func flood(w io.Writer, n int64) error {
	chunk := []byte(strings.Repeat("x", 64<<10))
	for n > 0 {
		m, err := w.Write(chunk[:min(n, int64(len(chunk)))])
		if err != nil {
			return err
		}
		n -= int64(m)
	}
	return nil
}
