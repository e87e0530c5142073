// Checks objects of the Prometheus operator, a JSON list of them on standard input, against its published models.
import { PodMonitor, PrometheusRule } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1";

const kinds = { PodMonitor, PrometheusRule };
let text = "";
for await (const chunk of process.stdin) text += chunk;
const objects = JSON.parse(text);
let wrong = objects.length === 0;
for (const object of objects) {
  const name = `${object.kind}/${object.metadata?.name}`;
  try {
    new kinds[object.kind](object).validate();
    // A rule without one of the two, and a misspelt field, are what the models let pass.
    for (const rule of (object.spec.groups ?? []).flatMap((group) => group.rules)) {
      if (!rule.expr || !(rule.alert || rule.record)) throw new Error(`a rule without a name or an expression: ${JSON.stringify(rule)}`);
    }
    console.log(`${name} fits its model`);
  } catch (why) {
    console.error(`${name}: ${why.message}`);
    wrong = true;
  }
}
process.exit(wrong ? 1 : 0);
