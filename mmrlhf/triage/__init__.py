"""Fewer people: whose judgement a query needs, by what a model proposes and how sure it is of that."""
