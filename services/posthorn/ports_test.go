package main

import (
	"slices"
	"testing"
)

func TestPortsAreGivenAsNumbersAndRanges(t *testing.T) {
	for text, want := range map[string][]int{
		"993":               {993},
		"110, 143,993,995":  {110, 143, 993, 995},
		"993,10000-10003,2": {993, 10000, 10001, 10002, 10003, 2},
	} {
		var got ports
		if err := got.UnmarshalText([]byte(text)); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "imap", "0", "65536", "5-4", "1-2-3", "993,", "-5"} {
		var got ports
		if err := got.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q was read as %v", text, got)
		}
	}
}
