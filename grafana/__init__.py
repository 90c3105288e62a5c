"""Dashboards as code, with the rules, alerts and runbooks that go along with them."""
