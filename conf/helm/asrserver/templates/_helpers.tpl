{{- define "asrserver.labels" -}}
app.kubernetes.io/name: asrserver
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "asrserver.selector" -}}
app.kubernetes.io/name: asrserver
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "asrserver.pod" -}}
enableServiceLinks: false
automountServiceAccountToken: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  {{- with .Values.user }}
  runAsUser: {{ . | int }}
  runAsGroup: 0
  fsGroup: {{ . | int }}
  {{- end }}
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "asrserver.container" -}}
image: "{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}"
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{- define "asrserver.env" -}}
- {name: ASRSERVER_METRICS_PORT, value: "9464"}
- {name: ASRSERVER_METRICS_HOST, value: "0.0.0.0"}
{{- range $name, $value := . }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end }}

{{- define "asrserver.redis" -}}
{{- $secret := .Values.connections.secret }}
{{- with .Values.redis }}
{{- if .shards }}
{{- $scheme := ternary "rediss" "redis" .tls }}
{{- $urls := list }}
{{- range .shards }}
{{- $urls = append $urls (printf "%s://:$(REDIS_PASSWORD)@%s/0" $scheme .) }}
{{- end }}
- {name: REDIS_PASSWORD, valueFrom: {secretKeyRef: {name: {{ $secret }}, key: REDIS_PASSWORD}}}
- {name: REDIS_URL, value: {{ join "," $urls | quote }}}
{{- else }}
- {name: REDIS_URL, valueFrom: {secretKeyRef: {name: {{ $secret }}, key: REDIS_URL}}}
{{- end }}
{{- end }}
{{- end }}

{{- define "asrserver.dns" -}}
- ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]
{{- end }}
