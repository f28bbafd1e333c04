package mailbox

import (
	"bytes"
	"encoding/base64"
	"net"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf16"
	"unicode/utf8"
)

// imapLines sits between the connection and go-imap. go-imap gives a whole session up at the first answer that it
// cannot parse, though real servers send such answers about things nobody needs: a mailbox named "R&D", a keyword with
// a bracket, an unknown answer, a broken date. imapLines repairs or drops exactly those; everything else passes as it
// came, bodies untouched and unbuffered. It is also where the trace is taken.
type imapLines struct {
	net.Conn

	guard *guard
	trace func(direction, line string)

	raw     []byte // read, not looked at yet
	out     []byte // ready to be read
	literal int64  // bytes of a literal still to pass
	within  bool   // the line at hand goes on after a literal
	long    bool   // in a line too long to look at
	shown   []byte // what the trace gets to see of a long line

	mu     sync.Mutex
	bye    string // the words of the last BYE
	lost   bool   // the connection ended within a literal
	denied bool   // \Deleted cannot be set in the mailbox that was opened last

	sent []byte // an unfinished line to the server
	over bool   // the answer was given up
}

// heldLine is the longest answer that is looked at as a whole.
const heldLine = 64 << 10

func (l *imapLines) Read(p []byte) (int, error) {
	for len(l.out) == 0 {
		if l.over {
			return 0, errTooMuch
		}
		if l.literal > 0 {
			return l.readLiteral(p)
		}
		if len(l.raw) > 0 && l.take() {
			continue
		}
		var chunk [4096]byte
		n, err := l.Conn.Read(chunk[:])
		l.raw = append(l.raw, chunk[:n]...)
		if n == 0 && err != nil {
			return 0, err
		}
	}
	n := copy(p, l.out)
	l.out = l.out[n:]
	return n, nil
}

func (l *imapLines) readLiteral(p []byte) (int, error) {
	if int64(len(p)) > l.literal {
		p = p[:l.literal]
	}
	var n int
	var err error
	if len(l.raw) > 0 {
		n = copy(p, l.raw)
		l.raw = l.raw[n:]
	} else {
		n, err = l.Conn.Read(p)
	}
	if n == 0 && err != nil {
		// go-imap may not be told within a literal: it would let two goroutines at its buffer. What follows is filling,
		// which nobody gets to see, up to the literal's end; then comes the error.
		l.lose()
		clear(p)
		n, err = len(p), nil
	}
	l.literal -= int64(n)
	return n, err
}

func (l *imapLines) lose() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lost = true
}

// isLost says that the connection ended within a literal, and that what go-imap reads of it is filling.
func (l *imapLines) isLost() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lost
}

// take moves what is complete from raw to out; false when more must be read first.
func (l *imapLines) take() bool {
	end := bytes.IndexByte(l.raw, '\n') + 1
	if end == 0 {
		if len(l.raw) < heldLine {
			return false
		}
		l.keepShown(l.raw)
		l.long = true
		// The end is held back: it may announce a literal.
		cut := len(l.raw) - 32
		l.out = append(l.out[:0], l.raw[:cut]...)
		l.raw = l.raw[cut:]
		return true
	}
	line := l.raw[:end]
	if !l.long && !l.within && isList(line) {
		// The name may be a literal: look at the whole answer.
		for {
			size, ok := literalAt(l.raw[:end])
			if !ok || size > 4096 {
				break
			}
			from := end + int(size)
			if len(l.raw) <= from {
				return false
			}
			next := bytes.IndexByte(l.raw[from:], '\n') + 1
			if next == 0 {
				return false
			}
			end = from + next
		}
		line = l.raw[:end]
	}
	l.raw = l.raw[end:]
	size, ok := literalAt(line)
	ok = ok && (l.within || l.long || mayHoldLiteral(line))
	if !l.long && !l.within {
		line = l.repair(line)
	}
	if ok && size > l.guard.left()+int64(len(l.raw)) {
		_ = l.guard.fail(errTooMuch) // more than the command may cost
		l.over = true
		return true
	}
	l.traceServer(line, size, ok)
	l.out = append(l.out[:0], line...)
	l.long = false
	l.within = ok
	if ok {
		l.literal = size
	}
	return true
}

var literalEnd = regexp.MustCompile(`\{(\d{1,18})\+?\}\r?\n$`)

func literalAt(line []byte) (int64, bool) {
	tail := line[max(0, len(line)-32):]
	m := literalEnd.FindSubmatch(tail)
	if m == nil {
		return 0, false
	}
	size, err := strconv.ParseInt(string(m[1]), 10, 64)
	return size, err == nil
}

// mayHoldLiteral: the free text of a status answer may look like a literal, but is none.
func mayHoldLiteral(line []byte) bool {
	head, rest, _ := bytes.Cut(line, []byte(" "))
	word, _, _ := bytes.Cut(rest, []byte(" "))
	switch strings.ToUpper(string(bytes.TrimSpace(word))) {
	case "OK", "NO", "BAD", "BYE", "PREAUTH":
		return false
	}
	return string(head) == "*"
}

func isList(line []byte) bool {
	return len(line) > 7 && (bytes.EqualFold(line[:7], []byte("* LIST ")) || bytes.EqualFold(line[:7], []byte("* LSUB ")))
}

// answers are the untagged answers that go-imap knows and that we may meet.
var answers = map[string]bool{
	"OK": true, "NO": true, "BAD": true, "BYE": true, "PREAUTH": true, "CAPABILITY": true, "NAMESPACE": true,
	"EXISTS": true, "RECENT": true, "LIST": true, "STATUS": true, "FETCH": true, "EXPUNGE": true, "SEARCH": true,
	"ESEARCH": true, "MYRIGHTS": true,
}

var (
	flagList     = regexp.MustCompile(`(?i)\bFLAGS \(([^)]*)\)`)
	internalDate = regexp.MustCompile(`(?i)\bINTERNALDATE ("[^"]*"|NIL)`)
	quotedBody   = regexp.MustCompile(`(?i)BODY\[[^\]]*\](?:<\d+>)? "(?:[^"\\]|\\.)*"`)
	permanent    = regexp.MustCompile(`(?i)^\* OK \[PERMANENTFLAGS \(([^)]*)\)`)
	readOnly     = regexp.MustCompile(`(?i)^\w+ OK \[READ-ONLY\]`)
	statusCode   = regexp.MustCompile(`^\* (?:OK|NO|BAD) \[([A-Za-z0-9.-]+)([^\]]*)\]`)
	number       = regexp.MustCompile(`^ [1-9][0-9]{0,9}$`)
)

// repair returns the answer as go-imap can take it, nothing for one that is dropped.
func (l *imapLines) repair(line []byte) []byte {
	text := string(line)
	if !strings.HasPrefix(text, "*") {
		if readOnly.Match(line) {
			l.deny(true)
		}
		return line
	}
	words := strings.Fields(text)
	if len(words) < 2 || words[0] != "*" {
		return nil
	}
	if strings.HasPrefix(text, "*  ") {
		text = "* " + strings.TrimLeft(text[1:], " ")
		line = []byte(text)
	}
	kind := strings.ToUpper(words[1])
	if kind[0] >= '0' && kind[0] <= '9' && len(words) > 2 {
		kind = strings.ToUpper(words[2])
	}
	switch {
	case !answers[kind]:
		return nil
	case kind == "LIST":
		if !validList(line) {
			return nil
		}
		return line
	case kind == "OK" || kind == "NO" || kind == "BAD" || kind == "BYE":
		if kind == "BYE" {
			l.mu.Lock()
			l.bye = strings.Join(words[2:], " ")
			l.mu.Unlock()
		}
		if m := permanent.FindStringSubmatch(text); m != nil {
			flags := systemFlags("FLAGS (" + m[1] + ")")
			l.deny(!strings.Contains(strings.ToLower(flags), `\deleted`))
			return []byte("* OK [PERMANENTFLAGS" + strings.TrimPrefix(flags, "FLAGS") + "] permitted\r\n")
		}
		return repairStatus(text, kind)
	case kind == "FETCH":
		text = flagList.ReplaceAllStringFunc(text, systemFlags)
		text = internalDate.ReplaceAllStringFunc(text, func(item string) string {
			_, value, _ := strings.Cut(item, " ")
			at, err := time.Parse(`"_2-Jan-2006 15:04:05 -0700"`, value)
			if err != nil || at.IsZero() { // the first moment of the year 1 is no date for go-imap
				return `INTERNALDATE "01-Jan-1970 00:00:00 +0000"`
			}
			return item
		})
		return []byte(text)
	}
	return line
}

// deny notes whether the server lets \Deleted be set. go-imap tells neither an empty list of permanent flags from none
// at all, which means that every flag may be set, nor what the tagged answer says.
func (l *imapLines) deny(denied bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.denied = denied
}

func (l *imapLines) isDenied() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.denied
}

// repairStatus keeps the response codes that are needed and readable, and takes the others off.
func repairStatus(text, kind string) []byte {
	m := statusCode.FindStringSubmatch(text)
	if m == nil {
		if strings.Contains(text, " [") && strings.HasPrefix(strings.TrimSpace(text[2:]), kind+" [") {
			return []byte("* " + kind + " unreadable\r\n")
		}
		return []byte(text)
	}
	switch strings.ToUpper(m[1]) {
	case "UIDVALIDITY", "UIDNEXT":
		if number.MatchString(m[2]) {
			if n, err := strconv.ParseUint(m[2][1:], 10, 32); err == nil && n > 0 {
				return []byte(text)
			}
		}
		return []byte("* " + kind + " unreadable\r\n")
	case "COPYUID", "CLOSED", "READ-ONLY", "READ-WRITE", "ALERT":
		return []byte(text)
	}
	return []byte("* " + kind + " noted\r\n")
}

// systemFlags keeps the flags that begin with a backslash: `FLAGS (\Seen [x] $Junk)` is `FLAGS (\Seen)`.
func systemFlags(item string) string {
	m := flagList.FindStringSubmatch(item)
	if m == nil {
		return item
	}
	var kept []string
	for _, flag := range strings.Fields(m[1]) {
		if name, ok := strings.CutPrefix(flag, `\`); ok && (name == "*" || isLetters(name)) {
			kept = append(kept, flag)
		}
	}
	return "FLAGS (" + strings.Join(kept, " ") + ")"
}

func isLetters(s string) bool {
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') {
			return false
		}
	}
	return s != ""
}

var (
	listHead = regexp.MustCompile(`(?is)^\* (?:LIST|LSUB) \(([^()"]*)\) (?:"(?:[^"\\]|\\.)"|NIL) (.*)\r?\n$`)
	listName = regexp.MustCompile(`(?s)^(?:"((?:[^"\\]|\\.)*)"|\{\d+\+?\}\r\n(.*?)|([^ "(){}\x00-\x1f]+))(?: \(.*\))?\r?$`)
)

// validList tells whether go-imap can take a LIST answer: its name must be UTF-8 and modified UTF-7 (RFC 3501 section
// 5.1.3). A mailbox with another name is as good as not there; it could not be named in a command either.
func validList(line []byte) bool {
	head := listHead.FindSubmatch(line)
	if head == nil {
		return false
	}
	for _, attr := range strings.Fields(string(head[1])) {
		if name, ok := strings.CutPrefix(attr, `\`); !ok || !isLetters(name) {
			return false
		}
	}
	name := listName.FindSubmatch(head[2])
	if name == nil {
		return false
	}
	s := string(name[1]) + string(name[2]) + string(name[3])
	return validUTF7(strings.NewReplacer(`\\`, `\`, `\"`, `"`).Replace(s))
}

var utf7Base64 = base64.NewEncoding("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+,").
	WithPadding(base64.NoPadding)

// validUTF7 is as strict as go-imap, which also takes raw UTF-8.
func validUTF7(s string) bool {
	if !utf8.ValidString(s) {
		return false
	}
	shifted := false
	for i := 0; i < len(s); i++ {
		if s[i] < 0x20 || s[i] == 0x7f {
			return false
		}
		if s[i] != '&' {
			shifted = false
			continue
		}
		code, _, ok := strings.Cut(s[i+1:], "-")
		if !ok {
			return false
		}
		i += len(code) + 1
		if code == "" {
			shifted = false
			continue
		}
		units, err := utf7Base64.DecodeString(code)
		if err != nil || len(units)%2 == 1 || shifted {
			return false
		}
		shifted = true
		for j := 0; j < len(units); j += 2 {
			r := rune(units[j])<<8 | rune(units[j+1])
			if utf16.IsSurrogate(r) {
				if j += 2; j >= len(units) || utf16.DecodeRune(r, rune(units[j])<<8|rune(units[j+1])) == utf8.RuneError {
					return false
				}
			} else if r >= 0x20 && r < 0x7f {
				return false
			}
		}
	}
	return true
}

// farewell is the words of the last BYE, "" if there was none.
func (l *imapLines) farewell() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bye
}

const tracedLine = 1000

func (l *imapLines) keepShown(b []byte) {
	if l.trace != nil && len(l.shown) < tracedLine {
		l.shown = append(l.shown, b[:min(len(b), tracedLine)]...)
	}
}

// traceServer leaves literals out: `BODY[] {1234 bytes}` is all that is shown of a body.
func (l *imapLines) traceServer(line []byte, size int64, literal bool) {
	if l.trace == nil {
		return
	}
	text := string(line)
	if l.long {
		text = string(l.shown[:min(len(l.shown), tracedLine)]) + "…"
		l.shown = nil
	}
	text = strings.TrimRight(text, "\r\n")
	text = quotedBody.ReplaceAllStringFunc(text, func(item string) string {
		head, _, _ := strings.Cut(item, ` "`)
		return head + " {" + strconv.Itoa(len(item)-len(head)-3) + " bytes}"
	})
	if literal {
		text = strings.TrimSuffix(text, text[max(0, strings.LastIndexByte(text, '{')):])
		text += "{" + strconv.FormatInt(size, 10) + " bytes}"
	}
	if text != "" {
		l.trace("S", text)
	}
}

func (l *imapLines) Write(p []byte) (int, error) {
	if l.trace != nil {
		l.sent = append(l.sent, p...)
		for {
			line, rest, ok := bytes.Cut(l.sent, []byte("\n"))
			if !ok {
				break
			}
			l.trace("C", strings.TrimRight(string(line[:min(len(line), tracedLine)]), "\r"))
			l.sent = rest
		}
	}
	return l.Conn.Write(p)
}
