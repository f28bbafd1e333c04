package reply

import (
	"bytes"
	"strings"
)

// Field is one field of a header block: its name as written and its unfolded value. The value is valid UTF-8 without
// NUL (8-bit bytes that are not UTF-8 are read as windows-1252), trimmed, still encoded where RFC 2047 encodes.
type Field struct {
	Name  string
	Value string
}

// Header is a header block (RFC 5322 section 2.2) in the order of the mail, the newest trace field first.
type Header []Field

// maxFields bounds what a header block can cost. No honest mail comes near it.
const maxFields = 4096

// ParseHeader reads a header block, or the header block at the start of a mail. It never fails: blank lines before the
// first field and an mbox "From " line are skipped, lines that are no field are left out, and whatever line ends occur
// (CRLF, LF) are taken. Fields beyond the 4096th are left out.
func ParseHeader(raw []byte) Header {
	block, _ := SplitHeader(raw)
	var h Header
	var value []byte // the bytes of the last field's value, while it grows
	flush := func() {
		if len(h) > 0 && value != nil {
			h[len(h)-1].Value = strings.TrimSpace(repair(value))
			value = nil
		}
	}
	junk := false
	for len(block) > 0 {
		var line []byte
		line, block = cutLine(block)
		if len(line) > 0 && (line[0] == ' ' || line[0] == '\t') {
			if value != nil && !junk {
				value = append(append(value, ' '), bytes.TrimLeft(line, " \t")...)
			}
			continue
		}
		name, rest, ok := cutField(line)
		if junk = !ok; junk {
			continue
		}
		flush()
		if len(h) == maxFields {
			return h
		}
		h = append(h, Field{Name: name})
		value = append([]byte{}, rest...)
	}
	flush()
	return h
}

// SplitHeader divides a mail at the first empty line. The header has no leading blank lines, byte order mark or mbox
// "From " line; the body starts after the empty line. A mail whose header has no field at all is all body. When there
// is no empty line, the body starts at the first line that is neither a field nor the continuation of one.
func SplitHeader(raw []byte) (header, body []byte) {
	start := bytes.TrimPrefix(raw, []byte("\xef\xbb\xbf"))
	start = bytes.TrimLeft(start, "\r\n")
	if bytes.HasPrefix(start, []byte("From ")) || bytes.HasPrefix(start, []byte(">From ")) {
		_, start = cutLine(start)
	}
	rest, fields := start, 0
	firstJunk := -1
	for len(rest) > 0 {
		at := len(start) - len(rest)
		var line []byte
		line, rest = cutLine(rest)
		if len(line) == 0 {
			if fields == 0 {
				return nil, bytes.TrimLeft(raw, "\r\n")
			}
			return start[:at], rest
		}
		switch _, _, ok := cutField(line); {
		case ok:
			fields++
		case line[0] == ' ' || line[0] == '\t':
		case firstJunk < 0:
			firstJunk = at
		}
	}
	switch {
	case fields == 0:
		return nil, bytes.TrimLeft(raw, "\r\n")
	case firstJunk >= 0:
		return start[:firstJunk], start[firstJunk:]
	}
	return start, nil
}

// cutLine returns the first line without its end (CRLF or LF), and what follows it.
func cutLine(b []byte) (line, rest []byte) {
	end := bytes.IndexByte(b, '\n')
	if end < 0 {
		return bytes.TrimRight(b, "\r"), nil
	}
	return bytes.TrimRight(b[:end], "\r"), b[end+1:]
}

// cutField divides a line at its colon. A name is made of printable ASCII (RFC 5322 section 3.6.8); NULs in it are
// dropped, blanks before the colon are allowed (section 4.5.8).
func cutField(line []byte) (name string, value []byte, ok bool) {
	colon := bytes.IndexByte(line, ':')
	if colon < 1 || colon > 256 {
		return "", nil, false
	}
	raw := bytes.TrimRight(line[:colon], " \t")
	if bytes.IndexByte(raw, 0) >= 0 {
		raw = bytes.ReplaceAll(raw, []byte{0}, nil)
	}
	if len(raw) == 0 {
		return "", nil, false
	}
	for _, c := range raw {
		if c <= ' ' || c > '~' {
			return "", nil, false
		}
	}
	return string(raw), line[colon+1:], true
}

// Get is the first value of a field, "" when there is none. Names are compared without case.
func (h Header) Get(name string) string {
	for _, f := range h {
		if strings.EqualFold(f.Name, name) {
			return f.Value
		}
	}
	return ""
}

// Has tells whether the field occurs, even empty.
func (h Header) Has(name string) bool {
	for _, f := range h {
		if strings.EqualFold(f.Name, name) {
			return true
		}
	}
	return false
}

// All are the values of a field, in order. Names are compared without case.
func (h Header) All(name string) []string {
	var values []string
	for _, f := range h {
		if strings.EqualFold(f.Name, name) {
			values = append(values, f.Value)
		}
	}
	return values
}

// Text is the first value of a field as a person reads it: RFC 2047 decoded, on one line.
func (h Header) Text(name string) string {
	return DecodeWords(h.Get(name))
}
