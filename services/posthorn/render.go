package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"posthorn/pkg/contract"
)

// printf writes for people.
func (p *program) printf(format string, args ...any) error {
	_, err := fmt.Fprintf(p.out, format, args...)
	return err
}

// printJSON writes one value over several lines.
func (p *program) printJSON(value any) error {
	encoder := json.NewEncoder(p.out)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(value)
}

// printLine writes one value on one line, at once.
func (p *program) printLine(value any) error {
	encoder := json.NewEncoder(p.out)
	encoder.SetEscapeHTML(false)
	return encoder.Encode(value)
}

// table is printed with aligned columns. What stands below a row has no columns.
type table struct {
	head   []string
	rows   []row
	indent string
	right  map[int]bool // columns of numbers
}

type row struct {
	cells []string
	below []string
}

func (t *table) add(cells []string, below ...string) { t.rows = append(t.rows, row{cells, below}) }

func (t *table) print(w io.Writer) error {
	widths := make([]int, len(t.head))
	all := append([]row{{cells: t.head}}, t.rows...)
	for _, r := range all {
		for i, cell := range r.cells {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	for _, r := range all {
		line := t.indent
		for i, cell := range r.cells {
			blank := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
			if t.right[i] {
				line += blank + cell + "  "
			} else {
				line += cell + blank + "  "
			}
		}
		b.WriteString(strings.TrimRight(line, " ") + "\n")
		for _, text := range r.below {
			b.WriteString(t.indent + "    " + text + "\n")
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// plain makes the words of strangers fit for a terminal: one line, at most most characters, nothing that moves the
// cursor or turns the direction of writing.
func plain(text string, most int) string {
	text = strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case !unicode.IsPrint(r) || r == utf8.RuneError:
			return -1
		}
		return r
	}, text)
	text = strings.Join(strings.Fields(text), " ")
	if runes := []rune(text); len(runes) > most {
		return string(runes[:most-1]) + "…"
	}
	return text
}

// person writes an address with its name.
func person(a *contract.Address) string {
	switch {
	case a == nil:
		return "(no sender)"
	case a.Name == "":
		return plain(a.Address, 80)
	case a.Address == "":
		return plain(a.Name, 60)
	default:
		return plain(a.Name, 60) + " <" + plain(a.Address, 80) + ">"
	}
}

func subject(text string) string {
	if text = plain(text, 100); text != "" {
		return text
	}
	return "(no subject)"
}

// ago says how long a time is ago, in one unit.
func ago(t, now time.Time) string {
	if t.IsZero() {
		return "never"
	}
	d := now.Sub(t)
	switch {
	case d < time.Second:
		return "just now"
	default:
		return span(d) + " ago"
	}
}

// span writes a duration in one unit.
func span(d time.Duration) string {
	switch {
	case d < time.Minute:
		return strconv.Itoa(int(d.Seconds())) + " s"
	case d < time.Hour:
		return strconv.Itoa(int(d.Minutes())) + " min"
	case d < 48*time.Hour:
		return strconv.Itoa(int(d.Hours())) + " h"
	default:
		return strconv.Itoa(int(d.Hours()/24)) + " days"
	}
}

// clock writes a time for people: the time of day, with the date when it is not today.
func (p *program) clock(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	t, now := t.In(p.zone), p.now().In(p.zone)
	if t.Format(time.DateOnly) == now.Format(time.DateOnly) {
		return t.Format(time.TimeOnly)
	}
	return t.Format(time.DateTime)
}

// bytesText writes a size for people.
func bytesText(n int64) string {
	value, unit := float64(n), "B"
	for _, next := range []string{"KB", "MB", "GB", "TB"} {
		if value < 1024 {
			break
		}
		value, unit = value/1024, next
	}
	if unit == "B" {
		return strconv.FormatInt(n, 10) + " B"
	}
	return strconv.FormatFloat(value, 'f', 1, 64) + " " + unit
}

// count writes a number with its word.
func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}

func quoted(s string) string { return strconv.Quote(s) }

// sortedKeys lists the keys of a map but some.
func sortedKeys[V any](m map[string]V, but ...string) []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(m)), func(key string) bool { return slices.Contains(but, key) })
}

// utc is a time for JSON: null when it is not known.
func utc(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}
