package reply

import (
	"strings"
	"unicode/utf8"

	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/encoding/htmlindex"
	"golang.org/x/text/encoding/japanese"
	"golang.org/x/text/encoding/korean"
	"golang.org/x/text/encoding/simplifiedchinese"
)

// What [ToUTF8] had to do.
const (
	// CharsetUnknown: no such charset is known, another was assumed.
	CharsetUnknown = "charset-unknown"
	// CharsetWrong: the bytes are not of the declared charset, another was assumed.
	CharsetWrong = "charset-wrong"
	// CharsetDamaged: some bytes fit nothing and became U+FFFD.
	CharsetDamaged = "charset-damaged"
)

// ToUTF8 reads bytes in a declared charset ("" when none was) and returns valid UTF-8 without NUL. It distrusts the
// declaration: UTF-8 labelled as a single-byte charset is read as UTF-8, windows-1252 labelled as UTF-8 or ASCII is
// read as windows-1252, GB2312 is read as its superset GB18030. It never fails; repaired is "" when the declaration was
// true, else one of [CharsetUnknown], [CharsetWrong] and [CharsetDamaged]. NULs are dropped silently.
func ToUTF8(b []byte, charset string) (text, repaired string) {
	label := strings.ToLower(strings.Trim(strings.TrimSpace(charset), `"'`))
	label, _, _ = strings.Cut(label, "*") // RFC 2231 section 5: a language may follow
	label = strings.TrimPrefix(label, "charset=")
	switch label {
	case "", "us-ascii", "ascii", "utf-8", "utf8", "utf8mb4", "unicode-1-1-utf-8", "7bit", "8bit":
		return unlabelled(b, label)
	}
	enc := lookup(label)
	if enc == nil {
		text, repaired = unlabelled(b, "")
		if !ascii(b) {
			repaired = CharsetUnknown
		}
		return text, repaired
	}
	if looksUTF8(b, enc) {
		return dropNUL(string(b)), CharsetWrong
	}
	out, err := enc.NewDecoder().Bytes(b)
	if err != nil { // no decoder of x/text fails on bytes; a future one may
		return dropNUL(strings.ToValidUTF8(string(b), "\uFFFD")), CharsetDamaged
	}
	text = dropNUL(strings.ToValidUTF8(string(out), "\uFFFD"))
	if strings.ContainsRune(text, utf8.RuneError) {
		repaired = CharsetDamaged
	}
	return text, repaired
}

// unlabelled reads bytes that claim to be UTF-8, ASCII or nothing: UTF-8 if they mostly are, else windows-1252.
func unlabelled(b []byte, label string) (text, repaired string) {
	if utf8.Valid(b) {
		if strings.Contains(label, "ascii") && !ascii(b) {
			repaired = CharsetWrong
		}
		return dropNUL(string(b)), repaired
	}
	good, bad := 0, 0
	for rest := b; len(rest) > 0; {
		r, n := utf8.DecodeRune(rest)
		switch {
		case r == utf8.RuneError && n == 1:
			bad++
		case n > 1:
			good++
		}
		rest = rest[n:]
	}
	if good >= bad { // damaged UTF-8, for example cut in the middle of a character
		return dropNUL(strings.ToValidUTF8(string(b), "\uFFFD")), CharsetDamaged
	}
	return dropNUL(windows1252(b)), CharsetWrong
}

// repair makes a header's bytes valid UTF-8 without NUL.
func repair(b []byte) string {
	text, _ := unlabelled(b, "")
	return text
}

func windows1252(b []byte) string {
	out, err := charmap.Windows1252.NewDecoder().Bytes(b)
	if err != nil { // a table of 256 entries has no error
		return strings.ToValidUTF8(string(b), "\uFFFD")
	}
	return string(out)
}

// looksUTF8 tells whether bytes that are labelled with another charset are UTF-8 all the same. In a single-byte charset
// text that happens to be valid UTF-8 is next to impossible; in a multi-byte one it takes a few characters to be sure.
func looksUTF8(b []byte, enc encoding.Encoding) bool {
	if ascii(b) || !utf8.Valid(b) {
		return false
	}
	if _, single := enc.(*charmap.Charmap); single {
		return true
	}
	multi, wide := 0, 0
	for _, r := range string(b) {
		if r >= utf8.RuneSelf {
			multi++
		}
		if r >= 0x800 {
			wide++
		}
	}
	return multi >= 6 && wide*2 >= multi
}

func ascii(b []byte) bool {
	for _, c := range b {
		if c >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

func dropNUL(s string) string {
	if strings.IndexByte(s, 0) < 0 {
		return s
	}
	return strings.ReplaceAll(s, "\x00", "")
}

// lookup finds an encoding by the label of a mail; nil when nobody knows it.
func lookup(label string) encoding.Encoding {
	switch label { // labels of mail programs that are no labels of the web
	case "gb2312", "gbk", "cp936", "ms936", "windows-936", "x-gbk", "gb_2312-80":
		return simplifiedchinese.GB18030
	case "hz-gb-2312":
		return simplifiedchinese.HZGB2312
	case "cp932", "windows-932", "iso-2022-jp-ms":
		if label == "iso-2022-jp-ms" {
			return japanese.ISO2022JP
		}
		return japanese.ShiftJIS
	case "cp949", "ks_c_5601":
		return korean.EUCKR
	case "iso-2022-jp-1", "iso-2022-jp-2", "iso-2022-jp-3":
		return japanese.ISO2022JP
	case "cp850", "ibm850":
		return charmap.CodePage850
	case "cp437", "ibm437":
		return charmap.CodePage437
	case "cp865", "ibm865":
		return charmap.CodePage865
	case "latin-1", "iso8859_1", "iso_8859_1", "8859-1", "iso 8859-1", "ansi", "windows1252":
		return charmap.Windows1252
	case "latin-9", "8859-15", "iso8859_15":
		return charmap.ISO8859_15
	}
	enc, err := htmlindex.Get(label)
	if err != nil || enc == encoding.Replacement {
		return nil
	}
	return enc
}
