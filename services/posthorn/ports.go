package main

import (
	"fmt"
	"strconv"
	"strings"
)

// ports is a list of port numbers and ranges, such as 110,143,1024-65535.
type ports []int

// UnmarshalText reads a list.
func (p *ports) UnmarshalText(text []byte) error {
	var read ports
	for part := range strings.SplitSeq(string(text), ",") {
		first, last, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			last = first
		}
		from, err := port(first)
		if err != nil {
			return err
		}
		to, err := port(last)
		if err != nil {
			return err
		}
		if to < from {
			return fmt.Errorf("%q ends before it begins", part)
		}
		for n := from; n <= to; n++ {
			read = append(read, n)
		}
	}
	*p = read
	return nil
}

func port(text string) (int, error) {
	n, err := strconv.Atoi(strings.TrimSpace(text))
	if err != nil || n < 1 || n > 65535 {
		return 0, fmt.Errorf("%q is no port: a number from 1 to 65535", text)
	}
	return n, nil
}
