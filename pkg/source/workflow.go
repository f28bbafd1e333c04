package source

import (
	"slices"
	"strings"

	"posthorn/pkg/contract"
)

// Workflow is the line of work a task belongs to. Sources name a published one as their default.
type Workflow struct {
	// ID is a token ([contract.ValidToken]) and never changes.
	ID        string `json:"id"`
	Name      string `json:"name"`
	Published bool   `json:"published"`
	// Revision of the record this was read from; 0 when it was never stored.
	Revision uint64 `json:"-"`
}

// General is the workflow that a first start makes.
func General() Workflow { return Workflow{ID: "general", Name: "General", Published: true} }

// ValidateWorkflow returns every rule that the workflow breaks, given the workflows and the sources that exist.
func ValidateWorkflow(w Workflow, others []Workflow, sources []Source) []Violation {
	v := &violations{}
	switch {
	case w.ID == "":
		v.add("id", RuleRequired, "Give the workflow an id: 1 to 64 characters of a-z, 0-9, _ and -.")
	case !contract.ValidToken(w.ID):
		v.add("id", RuleToken, "The id %q may only hold a-z, 0-9, _ and -, at most 64 of them.", w.ID)
	}
	if v.text("name", "name", w.Name, 200) {
		for _, other := range others {
			if other.ID != w.ID && strings.EqualFold(other.Name, w.Name) {
				v.add("name", RuleUnique, "The workflow %s has the name %q already.", other.ID, other.Name)
			}
		}
	}
	if users := usersOf(w.ID, sources); !w.Published && len(users) > 0 {
		v.add("published", RuleInUse, "New requests of these sources go to this workflow: %s. "+
			"Give them another default workflow first.", strings.Join(users, ", "))
	}
	return v.list
}

// usersOf names the sources whose default workflow it is.
func usersOf(workflow string, sources []Source) []string {
	var ids []string
	for _, s := range sources {
		if s.DefaultWorkflow == workflow {
			ids = append(ids, s.ID)
		}
	}
	slices.Sort(ids)
	return ids
}
