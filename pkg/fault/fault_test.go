package fault

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// declared reads the codes of codes.go from its source, so that none can be forgotten.
func declared(t *testing.T) map[Code]bool {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "codes.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	codes := map[Code]bool{}
	ast.Inspect(file, func(n ast.Node) bool {
		if literal, ok := n.(*ast.BasicLit); ok && literal.Kind == token.STRING {
			text, err := strconv.Unquote(literal.Value)
			if err != nil {
				t.Fatal(err)
			}
			codes[Code(text)] = true
		}
		return true
	})
	return codes
}

func TestEveryCodeHasAWholeTextInEveryLanguage(t *testing.T) {
	codes := declared(t)
	bare := regexp.MustCompile(`(?i)\b(errno|EOF|i/o timeout|invalid|nil)\b`)
	for language, texts := range catalogue {
		for code := range codes {
			entry, ok := texts[code]
			if !ok || entry.Headline == "" || entry.Now == "" || entry.You == "" {
				t.Errorf("%s: %s lacks headline, now or you", language, code)
			}
			if bare.MatchString(entry.Headline) {
				t.Errorf("%s: %s speaks like a program: %q", language, code, entry.Headline)
			}
			if entry.Permanent != catalogue["en"][code].Permanent {
				t.Errorf("%s: %s: permanent differs from English", language, code)
			}
		}
		for code := range texts {
			if !codes[code] {
				t.Errorf("%s: %s is in the catalogue, but no code", language, code)
			}
		}
	}
}

func TestAnErrorOfUnknownKindIsTriedAgain(t *testing.T) {
	err := fmt.Errorf("outer: %w", errors.New("who knows"))
	if Permanent(err) || CodeOf(err) != StoreUnknown {
		t.Fatalf("%v: permanent %v, code %s", err, Permanent(err), CodeOf(err))
	}
}

func TestAnErrorSaysItsHeadlineAndHidesItsCause(t *testing.T) {
	err := New(DNSNoSuchHost, errors.New("lookup secret.example: hunter2"), Params{"host": "mial.example.org"})
	if got, want := err.Error(), "dns.no_such_host: no such host is known"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if now := err.Text("fi").Now; !strings.Contains(now, `"mial.example.org"`) || strings.Contains(now, "hunter2") {
		t.Errorf("now: %q", now)
	}
	if !errors.Is(fmt.Errorf("fetch: %w", err), New(DNSNoSuchHost, nil, nil)) {
		t.Error("errors.Is does not find the code")
	}
}

func TestForeignWordsAreShownOnOneShortLine(t *testing.T) {
	got := Quote("NO \x1b[31mgo\r\naway\x00" + strings.Repeat("ä", 400))
	if strings.ContainsAny(got, "\r\n\x00\x1b") || len([]rune(got)) > 301 {
		t.Errorf("%q", got)
	}
}
