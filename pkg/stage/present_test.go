package stage

import (
	"encoding/json"
	"slices"
	"testing"
)

func TestAllowedPortsAreToldAsRanges(t *testing.T) {
	var all ports
	for port := 1; port < 1<<16; port++ {
		all = append(all, port)
	}
	for written, given := range map[string]ports{
		`[[110,110],[143,143],[993,993],[995,995]]`: {110, 143, 993, 995},
		`[[1,3],[5,5]]`: {5, 2, 1, 3, 2},
		`[[1,65535]]`:   all,
		`null`:          nil,
	} {
		data, err := json.Marshal(given)
		if err != nil || string(data) != written {
			t.Errorf("%s, want %s (%v)", data, written, err)
		}
		var read ports
		if err := json.Unmarshal(data, &read); err != nil {
			t.Error(err)
		}
		if want := slices.Compact(slices.Sorted(slices.Values(given))); !slices.Equal(read, want) {
			t.Errorf("%s was read as %d ports, want %d", data, len(read), len(want))
		}
	}
}
