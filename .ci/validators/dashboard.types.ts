// What a dashboard of ours may contain, put together from the types Grafana publishes. They are made for programs,
// with enums where a file has their words, and know a panel's options only one by one.
import type { AnnotationQuery, Dashboard, FieldConfig, GraphFieldConfig, Panel, RowPanel } from "@grafana/schema";
import type { Options as BarGauge } from "@grafana/schema/dist/esm/raw/composable/bargauge/panelcfg/x/BarGaugePanelCfg_types.gen";
import type { FieldConfig as StateTimelineField, Options as StateTimeline } from "@grafana/schema/dist/esm/raw/composable/statetimeline/panelcfg/x/StateTimelinePanelCfg_types.gen";
import type { Options as Stat } from "@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen";
import type { FieldConfig as TableField, Options as Table } from "@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen";
import type { Options as TimeSeries } from "@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen";

/** A type as its JSON has it: string enums are their words. */
type Json<T> = T extends string ? `${T}` : T extends (infer U)[] ? Json<U>[] : T extends object ? { [K in keyof T]: Json<T[K]> } : T;

/** A query to Prometheus. */
interface Query {
  refId: string;
  datasource: { type: "prometheus"; uid: "${datasource}" };
  expr: string;
  legendFormat: string;
  editorMode: "code";
  instant: boolean;
  range: boolean;
  format: "time_series" | "table";
}

type Of<Type extends string, Options, Field> = Omit<Json<Panel>, "type" | "options" | "fieldConfig" | "targets"> & {
  type: Type;
  targets: Query[];
  options: Json<Options>;
  fieldConfig: { defaults: Omit<Json<FieldConfig>, "custom"> & { custom?: Json<Field> }; overrides: Json<NonNullable<Panel["fieldConfig"]>["overrides"]> };
};

/** What the Prometheus data source keeps beside the query of an annotation. */
interface PrometheusAnnotation {
  expr?: string;
  step?: string;
  titleFormat?: string;
  textFormat?: string;
  tagKeys?: string;
}

export type Page = Omit<Json<Dashboard>, "panels" | "annotations"> & {
  annotations: { list: (Json<AnnotationQuery> & PrometheusAnnotation)[] };
  panels: (
    | (Json<Omit<RowPanel, "type">> & { type: "row" })
    | Of<"stat", Stat, object>
    | Of<"timeseries", TimeSeries, GraphFieldConfig>
    | Of<"state-timeline", StateTimeline, StateTimelineField>
    | Of<"bargauge", BarGauge, object>
    | Of<"table", Table, TableField>
  )[];
};
