package reply

import "strings"

// maxID bounds one id: no line of a mail may be longer (RFC 5322 section 2.1.1).
const maxID = 998

// IDs reads the message ids (RFC 5322 section 3.6.4) of header values such as Message-ID, In-Reply-To and References,
// in order, each once, with angle brackets. It takes what occurs in real mail: commas between ids, a missing closing
// bracket, ids without brackets, folding inside an id, comments, and ids hidden in RFC 2047 words. An empty id is never
// returned. Case is kept; contract.NormalMessageID compares.
func IDs(values []string) []string {
	var ids []string
	seen := make(map[string]bool)
	add := func(inner string) {
		inner = strings.Join(strings.Fields(inner), "")
		inner = strings.Trim(inner, "<>")
		if inner == "" || inner == "@" || len(inner)+2 > maxID || seen[inner] {
			return
		}
		seen[inner] = true
		ids = append(ids, "<"+inner+">")
	}
	for _, value := range values {
		if strings.Contains(value, "=?") {
			value = DecodeWords(value)
		}
		bracketed, loose := scanIDs(value)
		for _, id := range bracketed {
			add(id)
		}
		if len(bracketed) > 0 {
			continue
		}
		for _, word := range strings.FieldsFunc(loose, func(r rune) bool {
			return r == ',' || r == ';' || r == '"' || r == ' ' || r == '\t' || r == '\r' || r == '\n'
		}) {
			if at := strings.LastIndexByte(word, '@'); at > 0 && at < len(word)-1 {
				add(word)
			}
		}
	}
	return ids
}

// scanIDs finds what stands in angle brackets, and what stands outside of brackets and comments.
func scanIDs(value string) (bracketed []string, loose string) {
	var outside strings.Builder
	depth := 0 // of comments
	for i := 0; i < len(value); i++ {
		switch c := value[i]; {
		case c == '\\' && depth > 0:
			i++
		case c == '(':
			depth++
		case c == ')' && depth > 0:
			depth--
		case depth > 0:
		case c == '<':
			rest := value[i+1:]
			end := strings.IndexAny(rest, "<>,")
			switch {
			case end < 0: // never closed
				if fields := strings.Fields(rest); len(fields) > 0 {
					bracketed = append(bracketed, fields[0])
				}
				return bracketed, outside.String()
			case rest[end] == ',' && !strings.Contains(rest[:end], "@"): // a comma inside the local part
				if end = strings.IndexAny(rest, "<>"); end < 0 {
					return bracketed, outside.String()
				}
			}
			bracketed = append(bracketed, rest[:end])
			i += end
			if rest[end] == '>' {
				i++
			}
		default:
			outside.WriteByte(c)
		}
	}
	if depth > 0 && len(bracketed) == 0 && outside.Len() == 0 {
		return nil, strings.Trim(value, "()") // a bracket that never closes is no comment
	}
	return bracketed, outside.String()
}
