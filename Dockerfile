# The server and the Claude CLI in one image; docs/docker.md has the command that runs it, and the options that let
# bubblewrap work in it.
FROM node:24-slim AS build
WORKDIR /build
COPY package.json package-lock.json .npmrc ./
RUN npm ci --ignore-scripts
COPY tsconfig.json tsconfig.build.json ./
COPY src src
RUN npm run build

FROM node:24-slim
ARG CLAUDE_VERSION=2.1.331
# tini ends what the CLI's tools leave behind as zombies. The CLI's package is a stub until its install script has run,
# which npm may skip without an error: so it is run here, and the CLI is tried.
RUN apt-get update \
    && apt-get install -y --no-install-recommends tini ca-certificates bubblewrap \
    && rm -rf /var/lib/apt/lists/* \
    && npm install --prefix /opt/claude --cache /tmp/npm --ignore-scripts --no-audit --no-fund "@anthropic-ai/claude-code@$CLAUDE_VERSION" \
    && rm -rf /tmp/npm \
    && cd /opt/claude/node_modules/@anthropic-ai/claude-code \
    && node install.cjs \
    && ln -s "$PWD/bin/claude.exe" /usr/local/bin/claude \
    && claude --version \
    && useradd --uid 1001 --create-home --shell /usr/sbin/nologin claude
WORKDIR /opt/claude-api
COPY package.json ./
COPY --from=build /build/dist dist
USER claude
# Login, dialogues and state: all that must outlive the container.
VOLUME /home/claude
EXPOSE 8001
HEALTHCHECK --interval=30s --timeout=5s --start-period=130s \
    CMD ["node", "dist/ask.js", "health"]
ENTRYPOINT ["tini", "--"]
CMD ["node", "dist/main.js"]
