package mailbox

import (
	"context"
	"errors"
	"io"
	"net"
	"strconv"
	"strings"

	"posthorn/pkg/fault"
)

// longestLine is the longest line of a greeting, of capabilities or of a status that is read.
const longestLine = 8 << 10

// talk speaks line by line before a library takes the connection over: greeting, capabilities, STARTTLS and sign-in. It
// reads byte by byte, so that nothing sent after a line is swallowed: what somebody slips in behind the answer to
// STARTTLS reaches TLS and breaks it.
type talk struct {
	ctx   context.Context // lives for one call
	s     *Settings
	guard *guard
	conn  net.Conn
	trace func(direction, line string)
	tags  int
}

func newTalk(ctx context.Context, s *Settings, g *guard) *talk {
	t := &talk{ctx: ctx, s: s, guard: g, conn: g, trace: s.Trace}
	if t.trace == nil {
		t.trace = func(string, string) {}
	}
	return t
}

func (t *talk) failed(step string, err error) error { return ioFault(t.ctx, t.s, t.guard, step, err) }

// broken says that a line was no answer, and ends the connection.
func (t *talk) broken(step, line string) error {
	err := fault.New(fault.ProtocolBroken, errors.New(fault.Quote(line)), params(t.s, "step", step))
	return t.guard.fail(err)
}

// line reads one line without its end.
func (t *talk) line() (string, error) {
	var line []byte
	var one [1]byte
	for {
		n, err := t.conn.Read(one[:])
		if n == 0 && err != nil {
			return string(line), err
		}
		if n == 0 {
			continue
		}
		if one[0] == '\n' {
			text := strings.TrimSuffix(string(line), "\r")
			t.trace("S", text)
			return text, nil
		}
		if line = append(line, one[0]); len(line) > longestLine {
			return "", t.guard.fail(errTooMuch)
		}
	}
}

// send writes a line; shown is what the trace is told of it.
func (t *talk) send(line, shown string) error {
	t.trace("C", shown)
	_, err := io.WriteString(t.conn, line+"\r\n")
	return err
}

// looksLikeTLS tells a TLS record (an alert or a handshake) from a line of text.
func looksLikeTLS(line string) bool {
	return len(line) >= 2 && (line[0] == 0x15 || line[0] == 0x16) && line[1] == 0x03
}

// greeting reads the first line. A peer that speaks TLS, or nothing at all, is told apart.
func (t *talk) greeting(o *opening) (string, error) {
	t.guard.arm(budgetControl)
	defer t.guard.disarm()
	line, err := t.line()
	if looksLikeTLS(line) {
		return "", t.guard.fail(o.modeFault("The server speaks TLS there from the first byte."))
	}
	if err == nil {
		return line, nil
	}
	err = t.failed("greeting", err)
	if t.ctx.Err() != nil {
		return "", err
	}
	switch code := fault.CodeOf(err); {
	case line == "" && code == fault.ProtocolClosed:
		return "", fault.New(fault.TCPClosed, err, params(t.s))
	case line == "" && code == fault.ProtocolTimeout && t.s.Security != ImplicitTLS:
		if o.silentTLS(t.ctx, t.guard.RemoteAddr()) {
			return "", o.modeFault("The server speaks TLS there from the first byte.")
		}
	}
	return "", err
}

func (o *opening) modeFault(detail string) error {
	return fault.New(fault.TLSMode, nil, o.params("detail", detail))
}

// imap sends a command and reads up to its tagged answer. It returns the untagged answers, and a refusal when the
// tagged one is NO or BAD. onContinue answers a continuation request.
func (t *talk) imap(step, command, shown string, onContinue func() error) ([]string, error) {
	t.guard.arm(budgetControl)
	defer t.guard.disarm()
	t.tags++
	tag := "P" + strconv.Itoa(t.tags)
	if err := t.send(tag+" "+command, tag+" "+shown); err != nil {
		return nil, t.failed(step, err)
	}
	var untagged []string
	var bye *refusal
	for {
		line, err := t.line()
		if err != nil {
			if bye != nil {
				return nil, bye.fault(t.s, step, false)
			}
			return nil, t.failed(step, err)
		}
		head, rest, _ := strings.Cut(line, " ")
		status, text, _ := strings.Cut(rest, " ")
		status = strings.ToUpper(status)
		switch {
		case head == "*" && status == "BYE":
			r := refused(text)
			bye = &r
		case head == "*":
			untagged = append(untagged, rest)
		case head == "+" && onContinue != nil:
			if err := onContinue(); err != nil {
				return nil, t.failed(step, err)
			}
		case head == tag && status == "OK":
			// A status code of the tagged answer may hold the capabilities.
			return append(untagged, rest), nil
		case head == tag && (status == "NO" || status == "BAD"):
			return untagged, refused(text)
		default:
			return nil, t.broken(step, line)
		}
	}
}

// pop sends a command and reads its status line; -ERR is a refusal.
func (t *talk) pop(step, command, shown string) error {
	t.guard.arm(budgetControl)
	defer t.guard.disarm()
	if err := t.send(command, shown); err != nil {
		return t.failed(step, err)
	}
	line, err := t.line()
	if err != nil {
		return t.failed(step, err)
	}
	return t.popStatus(step, line)
}

func (t *talk) popStatus(step, line string) error {
	head, text, _ := strings.Cut(line, " ")
	switch strings.ToUpper(head) {
	case "+OK", "+":
		return nil
	case "-ERR":
		return refused(text)
	}
	return t.broken(step, line)
}

// popLines reads the lines of a multi-line answer.
func (t *talk) popLines(step string, most int) ([]string, error) {
	t.guard.arm(budgetControl)
	defer t.guard.disarm()
	var lines []string
	for {
		line, err := t.line()
		if err != nil {
			return nil, t.failed(step, err)
		}
		if line == "." {
			return lines, nil
		}
		if lines = append(lines, strings.TrimPrefix(line, ".")); len(lines) > most {
			return nil, t.failed(step, t.guard.fail(errTooMuch))
		}
	}
}

// refuse makes an error of a refusal; other errors stand.
func (t *talk) refuse(step string, err error, signIn bool) error {
	if r, ok := errors.AsType[refusal](err); ok {
		return r.fault(t.s, step, signIn)
	}
	return err
}
