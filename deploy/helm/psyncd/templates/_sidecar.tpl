{{/*
psyncd as a native sidecar, for charts that run the server themselves. Have this chart as a dependency with
`psyncd.relay.enabled: false`, let the server listen at 127.0.0.1:6380 with `replica-announce-port 6379`, and write into
its pod template:

  initContainers:
    {{- include "psyncd.sidecar" (dict "image" "psyncd:0.1.0" "configMap" "redis" "journal" "psyncd") | nindent 4 }}

and into the ConfigMap it names:

  data:
    {{- include "psyncd.sidecar.config" (dict "settings" (dict "backlog-disk-size" "4gb")) | nindent 4 }}

  image      required
  configMap  required: the name of a volume with psyncd.toml
  journal    required: the name of a volume for /var/lib/psyncd
  auth       the name of a volume with the file `masterauth`
  resources  by default 384Mi to 768Mi of memory, without a CPU limit
*/}}
{{- define "psyncd.sidecar" -}}
- name: psyncd
  restartPolicy: Always
  image: {{ required "psyncd.sidecar needs an image" .image | quote }}
  args: [run, --config, /etc/psyncd/psyncd.toml]
  ports:
    - {name: redis, containerPort: 6379}
    - {name: admin, containerPort: 9379}
  {{- include "psyncd.probes" . | nindent 2 }}
  securityContext:
    allowPrivilegeEscalation: false
    readOnlyRootFilesystem: true
    runAsNonRoot: true
    capabilities: {drop: [ALL]}
  resources:
    {{- default (dict "requests" (dict "cpu" "100m" "memory" "384Mi") "limits" (dict "memory" "768Mi")) .resources | toYaml | nindent 4 }}
  volumeMounts:
    - {name: {{ required "psyncd.sidecar needs a journal" .journal }}, mountPath: /var/lib/psyncd}
    - {name: {{ required "psyncd.sidecar needs a configMap" .configMap }}, mountPath: /etc/psyncd, readOnly: true}
    {{- with .auth }}
    - {name: {{ . }}, mountPath: /etc/psyncd-auth, readOnly: true}
    {{- end }}
{{- end -}}

{{/* Not one of them waits for the server, which is started after a sidecar is ready. */}}
{{- define "psyncd.probes" -}}
startupProbe:
  httpGet: {path: /readyz, port: admin}
  periodSeconds: 1
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /healthz, port: admin}
  periodSeconds: 10
  timeoutSeconds: 2
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: admin}
  periodSeconds: 5
  timeoutSeconds: 2
{{- end -}}

{{/* psyncd.toml of a sidecar. `auth: true` reads the password from the volume above. */}}
{{- define "psyncd.sidecar.config" -}}
{{- $settings := dict "upstream" "127.0.0.1:6380" "bind" "0.0.0.0" "port" 6379 "admin-bind" "0.0.0.0:9379" "dir" "/var/lib/psyncd" -}}
{{- if .auth }}{{ $_ := set $settings "masterauth-file" "/etc/psyncd-auth/masterauth" }}{{ end -}}
psyncd.toml: |
  {{- include "psyncd.toml" (merge (default (dict) .settings) $settings) | nindent 2 }}
{{- end -}}
