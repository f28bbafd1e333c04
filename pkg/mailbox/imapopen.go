package mailbox

import (
	"context"
	"encoding/base64"
	"errors"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/emersion/go-imap/v2/imapclient"

	"posthorn/pkg/fault"
)

// imapCaps are the capabilities that are passed on to go-imap, in its spelling. It must not see the others: on seeing
// IMAP4rev2 it sends mailbox names as raw UTF-8, though nobody enabled that.
var imapCaps = []string{"MOVE", "UIDPLUS", "ESEARCH", "IDLE", "NAMESPACE", "SPECIAL-USE", "LITERAL-", "LITERAL+",
	"UNSELECT"}

// openIMAP takes a fresh connection as far as the open Inbox. Everything up to the sign-in is spoken here and not by
// go-imap, which then finds itself greeted as signed in, with the capabilities of the moment: it has no reason to ask
// again, to fall back, or to see a password.
func (o *opening) openIMAP(ctx context.Context, g *guard, mode Mode) (Session, error) {
	t, caps, err := converse(ctx, o, g, dialect[map[string]bool]{
		greeting:     o.imapGreeting,
		capabilities: func(t *talk) (map[string]bool, error) { return t.imapCapability(nil) },
		startTLS:     o.startTLS,
		shown:        list,
	})
	if err != nil {
		return nil, err
	}

	began := time.Now()
	caps, err = o.imapSignIn(t, caps)
	if err != nil {
		o.did(stepSignIn, began, nil, err)
		return nil, err
	}
	o.did(stepSignIn, began, map[string]string{"capabilities": list(caps)}, nil)

	session := newIMAPSession(&o.Settings, g, t.conn, caps, mode)
	began = time.Now()
	if err := session.open(ctx); err != nil {
		o.did(stepInbox, began, nil, err)
		_ = session.Close() // the error that counts is the first
		return nil, err
	}
	status := session.Status()
	o.did(stepInbox, began, map[string]string{
		"messages":     strconv.Itoa(status.Messages),
		"uid_validity": strconv.FormatUint(uint64(status.UIDValidity), 10),
	}, nil)
	return session, nil
}

func (o *opening) imapGreeting(t *talk) error {
	line, err := t.greeting(o)
	if err != nil {
		return err
	}
	head, rest, _ := strings.Cut(line, " ")
	status, text, _ := strings.Cut(rest, " ")
	switch {
	case head == "*" && strings.EqualFold(status, "OK"):
		return nil
	case head == "*" && strings.EqualFold(status, "PREAUTH"):
		// Somebody else's session, or an attempt to make us skip STARTTLS (RFC 9051 section 7.1.4).
		return fault.New(fault.TLSPreAuth, nil, o.params())
	case head == "*" && strings.EqualFold(status, "BYE"):
		r := refused(text)
		if f := r.fault(&o.Settings, "greeting", false); f.Code != fault.ProtocolRefused {
			return f
		}
		return fault.New(fault.LimitUnavailable, r, o.params("words", r.words))
	case head == "+OK", head == "-ERR":
		return fault.New(fault.ProtocolWrong, nil, o.params("spoken", "POP3", "wanted", "IMAP"))
	}
	return t.broken("greeting", line)
}

// imapCapability asks for the capabilities unless said already contains them.
func (t *talk) imapCapability(said []string) (map[string]bool, error) {
	for range 2 {
		for i := len(said) - 1; i >= 0; i-- {
			if caps := capabilities(said[i]); caps != nil {
				return caps, nil
			}
		}
		var err error
		if said, err = t.imap("capabilities", "CAPABILITY", "CAPABILITY", nil); err != nil {
			return nil, t.refuse("capabilities", err, false)
		}
	}
	return nil, t.broken("capabilities", "no capabilities")
}

// capabilities reads "CAPABILITY …" and "OK [CAPABILITY …] …"; nil if line is neither.
func capabilities(line string) map[string]bool {
	words := strings.Fields(strings.ToUpper(line))
	if len(words) > 1 && words[0] == "OK" && words[1] == "[CAPABILITY" {
		words = words[1:]
	}
	if len(words) == 0 || (words[0] != "CAPABILITY" && words[0] != "[CAPABILITY") {
		return nil
	}
	caps := map[string]bool{}
	for _, word := range words[1:] {
		name, end := strings.CutSuffix(word, "]")
		caps[name] = true
		if end {
			break
		}
	}
	if caps["IMAP4REV2"] && !caps["IMAP4REV1"] {
		for _, name := range []string{"MOVE", "UIDPLUS", "ESEARCH", "IDLE", "NAMESPACE", "LITERAL-", "UNSELECT"} {
			caps[name] = true // part of RFC 9051
		}
	}
	return caps
}

func (o *opening) startTLS(t *talk, caps map[string]bool) error {
	none := fault.New(fault.TLSNoSTARTTLS, nil, o.params("command", "STARTTLS", "secure_port", "993"))
	if !caps["STARTTLS"] {
		return none
	}
	_, err := t.imap("STARTTLS", "STARTTLS", "STARTTLS", nil)
	if _, ok := errors.AsType[refusal](err); ok {
		return none
	}
	return err
}

func (o *opening) imapSignIn(t *talk, caps map[string]bool) (map[string]bool, error) {
	const step = "sign-in"
	var said []string
	var err error
	switch quotable := isASCII(o.Username + o.Password); {
	case !caps["LOGINDISABLED"] && (quotable || !caps["AUTH=PLAIN"]):
		said, err = o.login(t, step, quotable)
	case caps["AUTH=PLAIN"]:
		plain := base64.StdEncoding.EncodeToString([]byte("\x00" + o.Username + "\x00" + o.Password))
		if caps["SASL-IR"] {
			said, err = t.imap(step, "AUTHENTICATE PLAIN "+plain, "AUTHENTICATE PLAIN …", nil)
		} else {
			said, err = t.imap(step, "AUTHENTICATE PLAIN", "AUTHENTICATE PLAIN",
				func() error { return t.send(plain, "…") })
		}
	default:
		var offered []string
		for name := range caps {
			if mechanism, ok := strings.CutPrefix(name, "AUTH="); ok {
				offered = append(offered, mechanism)
			}
		}
		return nil, fault.New(fault.AuthMechanism, nil, o.params("offered", strings.Join(offered, ", ")))
	}
	if err != nil {
		return nil, t.refuse(step, err, true)
	}
	return t.imapCapability(said)
}

// login sends LOGIN with quoted strings, or with literals where a quoted string may not hold the bytes.
func (o *opening) login(t *talk, step string, quotable bool) ([]string, error) {
	if quotable {
		return t.imap(step, "LOGIN "+quoted(o.Username)+" "+quoted(o.Password), "LOGIN …", nil)
	}
	rest := []string{
		o.Username + " {" + strconv.Itoa(len(o.Password)) + "}",
		o.Password,
	}
	return t.imap(step, "LOGIN {"+strconv.Itoa(len(o.Username))+"}", "LOGIN …", func() error {
		if len(rest) == 0 {
			return errors.New("asked for more than two literals")
		}
		next := rest[0]
		rest = rest[1:]
		return t.send(next, "…")
	})
}

func quoted(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// newIMAPClient hands the signed-in connection to go-imap.
func newIMAPClient(g *guard, conn net.Conn, trace func(string, string), caps map[string]bool,
	changed func()) (*imapclient.Client, *imapLines) {
	greeting := "* PREAUTH [CAPABILITY IMAP4rev1"
	if caps["IMAP4REV2"] && !caps["IMAP4REV1"] {
		greeting = "* PREAUTH [CAPABILITY IMAP4rev2"
	}
	for _, name := range imapCaps {
		if caps[name] {
			greeting += " " + name
		}
	}
	lines := &imapLines{Conn: conn, guard: g, trace: trace, out: []byte(greeting + "] signed in\r\n")}
	return imapclient.New(lines, &imapclient.Options{
		UnilateralDataHandler: &imapclient.UnilateralDataHandler{
			Expunge: func(uint32) { changed() },
			Mailbox: func(data *imapclient.UnilateralDataMailbox) {
				if data.NumMessages != nil {
					changed()
				}
			},
		},
	}), lines
}
