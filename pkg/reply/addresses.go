package reply

import (
	"strings"

	"posthorn/pkg/contract"
)

// Addresses reads the mailboxes of address fields (RFC 5322 section 3.4), in order. It takes what a strict reader
// refuses: commas in names without quotes, names in 8-bit characters, comments as names, groups, source routes, missing
// brackets. Names are decoded after the structure was read, so that an encoded name cannot add an address.
func Addresses(values []string) []contract.Address {
	var list []contract.Address
	for _, value := range values {
		found := scanAddresses(value)
		if len(found) == 0 && strings.Contains(value, "=?") {
			found = scanAddresses(DecodeWords(value)) // everything in one encoded word: wrong, but it occurs
		}
		list = append(list, found...)
	}
	return list
}

// scanAddresses reads one field value in one pass.
func scanAddresses(value string) []contract.Address {
	var list []contract.Address
	var phrase, comment, angle strings.Builder
	hasAngle, hasAt := false, false // hasAt: the phrase holds an @
	flush := func(end bool) {
		if !end && !hasAngle && !hasAt && comment.Len() == 0 { // a comma in a name without quotes: the rest follows
			phrase.WriteByte(',')
			return
		}
		name := strings.TrimSpace(phrase.String())
		switch {
		case hasAngle:
			if a, ok := makeAddress(name, comment.String(), angle.String()); ok {
				list = append(list, a)
			}
		case name == "" && comment.Len() == 0:
		default:
			address := bareAddress(name)
			if !strings.Contains(address, "@") && (!end || len(list) > 0) {
				address = "" // one word is an address only when it is all there is
			}
			if a, ok := makeAddress("", comment.String(), address); ok {
				list = append(list, a)
			}
		}
		phrase.Reset()
		comment.Reset()
		angle.Reset()
		hasAngle, hasAt = false, false
	}
	quoted, depth, inAngle := false, 0, false
	for i := 0; i < len(value); i++ {
		c := value[i]
		switch {
		case inAngle:
			switch c {
			case '>':
				inAngle = false
			case ' ', '\t', '<':
			default:
				angle.WriteByte(c)
			}
		case depth > 0:
			switch {
			case c == '\\' && i+1 < len(value):
				i++
				comment.WriteByte(value[i])
			case c == '(':
				depth++
			case c == ')':
				depth--
			default:
				comment.WriteByte(c)
			}
		case quoted:
			switch {
			case c == '\\' && i+1 < len(value):
				i++
				phrase.WriteByte(value[i])
			case c == '"':
				quoted = false
			default:
				phrase.WriteByte(c)
			}
		case c == '"':
			quoted = true
		case c == '(':
			depth = 1
		case c == '<':
			inAngle, hasAngle = true, true
			angle.Reset()
		case c == ',' || c == ';':
			flush(false)
		case c == ':' && !hasAngle && !hasAt:
			phrase.Reset() // the name of a group, or "mailto:"
		default:
			hasAt = hasAt || c == '@'
			phrase.WriteByte(c)
		}
	}
	flush(true)
	return list
}

func makeAddress(name, comment, address string) (contract.Address, bool) {
	if route := strings.LastIndexByte(address, ':'); route >= 0 && strings.HasPrefix(address, "@") {
		address = address[route+1:] // RFC 5322 section 4.4
	}
	address = strings.TrimPrefix(oneLine(address), "mailto:")
	if address == "" || len(address) > 320 {
		return contract.Address{}, false
	}
	if name == "" {
		name = comment
	}
	name = strings.Trim(DecodeWords(name), `"' ,`)
	if name == address {
		name = ""
	}
	return contract.Address{Name: name, Address: address}, true
}

// bareAddress finds the address in a phrase without brackets: the word with an @, or the only word.
func bareAddress(phrase string) string {
	words := strings.Fields(phrase)
	for _, word := range words {
		if word = strings.Trim(word, `"'[]`); strings.Contains(word, "@") {
			return word
		}
	}
	if len(words) == 1 && words[0] != "," && !strings.Contains(words[0], "=?") {
		return strings.TrimSuffix(words[0], ",")
	}
	return ""
}

// sameAddress compares two addresses without case. Strictly the local part has case (RFC 5321 section 2.4); no provider
// keeps two mailboxes apart by it.
func sameAddress(a, b string) bool {
	return strings.EqualFold(strings.TrimSpace(a), strings.TrimSpace(b))
}
