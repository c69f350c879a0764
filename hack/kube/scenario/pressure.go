package scenario

var pressure []Scenario
