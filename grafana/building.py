"""A typed layer over grafana-foundation-sdk: panels, rows and dashboards as this project wants all of them.

A panel can't be made without title, description and unit. Colours mean the same everywhere: green is well, yellow
wants a look, red wants somebody now; what is neither good nor bad is blue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, Self, TypeVar

from grafana_foundation_sdk.builders import bargauge, common, dashboard, heatmap, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.variants import Dataquery as DataqueryModel
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    BigValueTextMode,
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VizOrientation,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLink,
    DashboardLinkType,
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    FieldColorModeId,
    Panel,
    Threshold,
    ThresholdsConfig,
    ThresholdsMode,
    ValueMap,
    ValueMapping,
    ValueMappingResult,
    VariableModel,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from grafana.queries import PREFIX, RATE, Query, increase, of_pipeline, of_process

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
RUNBOOKS = Path(__file__).parent / "runbooks"
RUNBOOKS_URL = "https://example.com/streambatch/runbooks"
REFS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
GREEN, YELLOW, RED, BLUE = "green", "yellow", "red", "blue"
Steps = Sequence[tuple[float | None, str]]
NEUTRAL: Steps = ((None, BLUE),)
WELL: Steps = ((None, GREEN),)
BAD_FROM_ONE: Steps = ((None, GREEN), (1, RED))
LATENCY_STEPS: Steps = ((None, GREEN), (0.5, YELLOW), (1, RED))
DEAD_STEPS: Steps = ((None, GREEN), (0.001, YELLOW), (0.01, RED))
FULL_STEPS: Steps = ((None, GREEN), (0.9, RED))
"""Thresholds: from which value on which colour holds."""


class _Panel(Protocol):
    """What the builders of all kinds of panel have in common."""

    def build(self) -> Panel: ...
    def title(self, title: str) -> Self: ...
    def description(self, description: str) -> Self: ...
    def datasource(self, datasource: DataSourceRef) -> Self: ...
    def unit(self, unit: str) -> Self: ...
    def height(self, h: int) -> Self: ...
    def span(self, w: int) -> Self: ...
    def no_value(self, no_value: str) -> Self: ...
    def links(self, links: list[Builder[DashboardLink]]) -> Self: ...
    def with_target(self, target: Builder[DataqueryModel]) -> Self: ...
    def thresholds(self, thresholds: Builder[ThresholdsConfig]) -> Self: ...


P = TypeVar("P", bound=_Panel)


class About(NamedTuple):
    """What every panel says of itself. runbooks: pages on what to do when it looks bad, by name."""

    title: str
    description: str
    unit: str
    runbooks: tuple[str, ...] = ()


class Row(NamedTuple):
    """Panels under a headline, in reading order."""

    title: str
    panels: Sequence[Builder[Panel]]
    collapsed: bool = False


def number(
    about: About, expr: str, *, steps: Steps = NEUTRAL, span: int = 3, says: Mapping[str, tuple[str, str]] | None = None
) -> stat.Panel:
    """Return a panel of one number. says: text and colour of single values."""
    panel = _panel(stat.Panel(), about, [Query(expr, "")], steps, span=span, height=4)
    panel.color_mode(BigValueColorMode.VALUE if says is None else BigValueColorMode.BACKGROUND)
    panel.graph_mode(BigValueGraphMode.AREA if says is None else BigValueGraphMode.NONE)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    if says is not None:
        panel.mappings([_value_map(says)])
    return panel


def names(about: About, query: Query, *, span: int = 8) -> stat.Panel:
    """Return a panel that shows the legend of series whose value is always 1."""
    panel = _panel(stat.Panel(), about, [query], NEUTRAL, span=span, height=4, is_instant=True)
    panel.text_mode(BigValueTextMode.NAME).graph_mode(BigValueGraphMode.NONE)
    return panel.color_mode(BigValueColorMode.NONE)


def graph(
    about: About,
    *queries: Query,
    steps: Steps | None = None,
    stacked: bool = False,
    span: int = 8,
    top: float | None = None,
    has_negative: bool = False,
) -> timeseries.Panel:
    """Return a panel of lines over time. steps: thresholds, drawn dashed. top: the axis reaches it at least.
    has_negative: it may go below 0, too."""
    panel = _panel(timeseries.Panel(), about, queries, steps or WELL, span=span, height=8)
    if not has_negative:
        panel.min(0)
    panel.fill_opacity(30 if stacked else 8).line_width(1)
    panel.legend(
        common.VizLegendOptions()
        .display_mode(LegendDisplayMode.LIST)
        .placement(LegendPlacement.BOTTOM)
        .show_legend(True)
    )
    panel.tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
    panel.color_scheme(dashboard.FieldColor().mode(FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
    if stacked:
        panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL).group("A"))
    if steps is not None:
        panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED))
    if top is not None:
        panel.axis_soft_max(top)
    return panel


def colour(panel: timeseries.Panel, by_pattern: Mapping[str, str]) -> timeseries.Panel:
    """Give series whose name fits a pattern a colour of their own, and return the panel."""
    for pattern, fixed in by_pattern.items():
        panel.override_by_regexp(
            pattern, [DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": fixed})]
        )
    return panel


def bars(about: About, *queries: Query, steps: Steps, span: int = 8) -> bargauge.Panel:
    """Return a panel of bars for shares of 1, as they are now."""
    panel = _panel(bargauge.Panel(), about, queries, steps, span=span, height=8, is_instant=True)
    panel.orientation(VizOrientation.HORIZONTAL)
    return panel.min(0).max(1).reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))


def heat(about: About, expr: str, *, span: int = 12) -> heatmap.Panel:
    """Return a heatmap of a histogram's buckets; the unit is that of the buckets' bounds."""
    panel = _panel(
        heatmap.Panel(), about, [Query(expr, "{{le}}")], WELL, span=span, height=8, format=PromQueryFormat.HEATMAP
    )
    panel.y_axis(heatmap.YAxisConfig().unit(about.unit)).show_legend()
    panel.filter_values(heatmap.FilterValueRange().le(1e-9))
    return panel.color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64))


def timeline(about: About, query: Query, says: Mapping[str, tuple[str, str]], *, span: int = 8) -> statetimeline.Panel:
    """Return a panel of states over time."""
    panel = _panel(statetimeline.Panel(), about, [query], WELL, span=span, height=8)
    return panel.mappings([_value_map(says)]).merge_values(True)


class Column(NamedTuple):
    """A column of a table. steps: thresholds of its cells."""

    title: str
    expr: str
    unit: str
    steps: Steps | None = None


def rows(about: About, columns: Sequence[Column], *, keys: Sequence[str], link: str) -> table.Panel:
    """Return a table, a line for each set of `keys`. link: where a line leads."""
    queries = [Query(column.expr, column.title) for column in columns]
    panel = _panel(
        table.Panel(), about, queries, WELL, span=24, height=9, format=PromQueryFormat.TABLE, is_instant=True
    )
    panel.with_transformation(DataTransformerConfig(id_val="merge", options={}))
    panel.with_transformation(DataTransformerConfig(id_val="organize", options={"excludeByName": {"Time": True}}))
    panel.override_by_name(
        keys[-1], [DynamicConfigValue(id_val="links", value=[{"title": "Show in the overview", "url": link}])]
    )
    for ref, column in zip(REFS, columns, strict=False):
        values: dict[str, object] = {"displayName": column.title, "unit": column.unit}
        if column.steps is not None:
            values |= {
                "thresholds": {"mode": "absolute", "steps": [{"value": at, "color": one} for at, one in column.steps]},
                "custom.cellOptions": {"type": "color-text"},
            }
        name = "Value" if len(columns) == 1 else f"Value #{ref}"
        panel.override_by_name(name, [DynamicConfigValue(id_val=at, value=value) for at, value in values.items()])
    return panel


def dashboard_of(uid: str, title: str, description: str, layout: Sequence[Row]) -> dashboard.Dashboard:
    """Return a dashboard with the variables, annotations and links that all of them have."""
    board = dashboard.Dashboard(title).uid(uid).description(description).tags(["streambatch"]).readonly()
    board.time("now-1h", "now").refresh("30s").timezone("browser").tooltip(DashboardCursorSync.CROSSHAIR)
    for variable in _variables():
        board.with_variable(variable)
    for annotation in _annotations():
        board.annotation(annotation)
    board.link(
        dashboard.DashboardLink("streambatch")
        .type(DashboardLinkType.DASHBOARDS)
        .tags(["streambatch"])
        .include_vars(True)
        .keep_time(True)
    )
    board.link(dashboard.DashboardLink("Runbooks").url("${runbooks}").icon("doc").target_blank(True))
    for row in layout:
        _put(board, row)
    return board


def _panel(
    panel: P,
    about: About,
    queries: Sequence[Query],
    steps: Steps,
    *,
    span: int,
    height: int,
    format: PromQueryFormat = PromQueryFormat.TIME_SERIES,
    is_instant: bool = False,
) -> P:
    panel.title(about.title).description(about.description).unit(about.unit).datasource(SOURCE).span(span)
    panel.height(height).no_value("no data").thresholds(
        dashboard.ThresholdsConfig()
        .mode(ThresholdsMode.ABSOLUTE)
        .steps([Threshold(value=value, color=color) for value, color in steps])
    )
    panel.links([_runbook(name) for name in about.runbooks])
    for ref, query in zip(REFS, queries, strict=False):
        target = Dataquery().expr(query.expr).ref_id(ref).format(format).datasource(SOURCE)
        target.legend_format(query.legend or about.title)
        panel.with_target(target.instant() if is_instant else target.range())
    return panel


def _runbook(name: str) -> dashboard.DashboardLink:
    assert (RUNBOOKS / f"{name}.md").exists(), name
    title = name.replace("-", " ").capitalize()
    return dashboard.DashboardLink(f"Runbook: {title}").url(f"${{runbooks}}/{name}.md").target_blank(True)


def _put(board: dashboard.Dashboard, row: Row) -> None:
    made = dashboard.Row(row.title)
    if row.collapsed:
        for panel in row.panels:
            made.with_panel(panel)
        board.with_row(made)
        return
    board.with_row(made)
    for panel in row.panels:
        board.with_panel(panel)


def _variables() -> list[Builder[VariableModel]]:
    of_jobs = f"label_values({PREFIX}build_info, job)"
    of_instances = f'label_values({PREFIX}build_info{{job=~"$job"}}, instance)'
    of_pipelines = f'label_values({PREFIX}records_unacked{{job=~"$job",instance=~"$instance"}}, pipeline)'
    return [
        dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"),
        _variable("job", "Job", of_jobs),
        _variable("instance", "Instance", of_instances),
        _variable("pipeline", "Pipeline", of_pipelines),
        dashboard.TextBoxVariable("runbooks")
        .label("Runbooks at")
        .description("Where your copy of the runbooks is served")
        .default_value(RUNBOOKS_URL)
        .current(VariableOption(selected=True, text=RUNBOOKS_URL, value=RUNBOOKS_URL)),
    ]


def _variable(name: str, label: str, query: str) -> dashboard.QueryVariable:
    variable = dashboard.QueryVariable(name).label(label).datasource(SOURCE)
    variable.query({"qryType": 1, "query": query, "refId": f"variable-{name}"})
    variable.multi(True).include_all(True).all_value(".+").sort(VariableSort.ALPHABETICAL_ASC)
    variable.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
    return variable.current(VariableOption(selected=True, text=["All"], value=["$__all"]))


def _annotations() -> list[dashboard.AnnotationQuery]:
    return [
        _annotation("Restarts", f"changes({of_process('process_start_time_seconds')}[{RATE}]) > 0", RED),
        _annotation("Config reloads", f"{increase(of_process('config_reloads_total'), 'instance, outcome')} > 0", BLUE),
        _annotation("Model reloads", f"{increase(of_pipeline('model_reloads_total'), 'pipeline, outcome')} > 0", BLUE),
    ]


def _annotation(name: str, expr: str, color: str) -> dashboard.AnnotationQuery:
    return dashboard.AnnotationQuery().name(name).datasource(SOURCE).enable(True).icon_color(color).expr(expr)


def _value_map(says: Mapping[str, tuple[str, str]]) -> ValueMapping:
    return ValueMap(
        options={value: ValueMappingResult(text=text, color=color) for value, (text, color) in says.items()}
    )
