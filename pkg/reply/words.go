package reply

import (
	"encoding/base64"
	"strings"
)

// DecodeWords decodes the encoded words of a header value (RFC 2047) and returns one line of valid UTF-8 without
// control characters. It is lenient where mail programs are careless: words inside quotes or glued to text, blanks
// inside a word, base64 without padding, and characters split over two words of the same charset.
func DecodeWords(s string) string {
	var out strings.Builder
	var pending []byte // decoded bytes of adjacent words in one charset
	charset := ""
	flush := func() {
		if pending != nil {
			text, _ := ToUTF8(pending, charset)
			out.WriteString(text)
			pending = nil
		}
	}
	for s != "" {
		start := strings.Index(s, "=?")
		if start < 0 {
			break
		}
		label, content, length, ok := cutWord(s[start:])
		if !ok {
			flush()
			out.WriteString(s[:start+2])
			s = s[start+2:]
			continue
		}
		// Blanks between two encoded words are not part of the text (RFC 2047 section 6.2).
		between := s[:start]
		if pending == nil || strings.TrimLeft(between, " \t\r\n") != "" {
			flush()
			out.WriteString(between)
		} else if !strings.EqualFold(label, charset) {
			flush()
		}
		charset = label
		if pending == nil {
			pending = []byte{}
		}
		pending = append(pending, content...)
		s = s[start+length:]
	}
	flush()
	out.WriteString(s)
	return oneLine(out.String())
}

// cutWord reads the encoded word at the start of s and tells how long it is.
func cutWord(s string) (charset string, content []byte, length int, ok bool) {
	const longest = 16 << 10 // RFC 2047 allows 75; some programs put everything into one word
	window := s[:min(len(s), longest)]
	charsetEnd := strings.IndexByte(window[2:min(len(window), 66)], '?')
	if charsetEnd < 1 {
		return "", nil, 0, false
	}
	at := 2 + charsetEnd
	if len(window) < at+4 || window[at+2] != '?' {
		return "", nil, 0, false
	}
	charset = window[2:at]
	if strings.ContainsAny(charset, " \t\r\n<>\"") {
		return "", nil, 0, false
	}
	begin := at + 3
	size := strings.Index(window[begin:], "?=")
	if size < 0 {
		return "", nil, 0, false
	}
	text := window[begin : begin+size]
	switch window[at+1] {
	case 'b', 'B':
		content = lenientBase64(text)
	case 'q', 'Q':
		content = decodeQ(text)
	default:
		return "", nil, 0, false
	}
	return charset, content, begin + size + 2, true
}

// lenientBase64 decodes what is base64 in s and ignores the rest.
func lenientBase64(s string) []byte {
	clean := make([]byte, 0, len(s))
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'A' && c <= 'Z', c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '+', c == '/':
			clean = append(clean, c)
		}
	}
	if len(clean)%4 == 1 { // half a byte: nothing can be made of it
		clean = clean[:len(clean)-1]
	}
	out := make([]byte, base64.RawStdEncoding.DecodedLen(len(clean)))
	n, err := base64.RawStdEncoding.Decode(out, clean)
	if err != nil { // cannot happen: only the alphabet is left; keep what was decoded
		return out[:n]
	}
	return out[:n]
}

func decodeQ(s string) []byte {
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '_':
			out = append(out, ' ')
		case c == '=' && i+2 < len(s) && hexDigit(s[i+1]) >= 0 && hexDigit(s[i+2]) >= 0:
			out = append(out, byte(hexDigit(s[i+1])<<4|hexDigit(s[i+2])))
			i += 2
		default:
			out = append(out, c)
		}
	}
	return out
}

func hexDigit(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// oneLine turns control characters into blanks and runs of blanks at line breaks into one.
func oneLine(s string) string {
	if !strings.ContainsFunc(s, isControl) {
		return strings.TrimSpace(s)
	}
	var out strings.Builder
	blank := false
	for _, r := range s {
		if isControl(r) {
			blank = true
			continue
		}
		if blank && r != ' ' && out.Len() > 0 {
			out.WriteByte(' ')
		}
		blank = false
		out.WriteRune(r)
	}
	return strings.TrimSpace(out.String())
}

func isControl(r rune) bool {
	return r < ' ' || r == 0x7f || (r >= 0x80 && r < 0xa0) || r == '\u2028' || r == '\u2029'
}
